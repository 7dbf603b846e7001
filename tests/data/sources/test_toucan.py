"""Toucan: calls find their responses, parallel calls become branches, and no evidence is lost on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.data.sources.converting import reason, record


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def says(content: str, **extra: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **extra}


def calls(name: str, plan: str = "", **extra: Any) -> dict[str, Any]:
    return says(plan, function_call={"name": name, "arguments": f'{{"of": "{name}"}}'}, **extra)


def returns(name: str, content: Any, **extra: Any) -> dict[str, Any]:
    return {"role": "function", "name": name, "content": content, **extra}


def row(*messages: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"uuid": "u", "subset_name": "single-turn-original", "messages": json.dumps(messages), **extra}


def spelled(name: str, number: int) -> str:
    return f'[TOOL_CALL {number}]\n{{"name": "{name}", "arguments": {{"of": "{name}"}}}}'


PARALLEL = (calls("a", "I look both up."), calls("b"), returns("a", "ra"), returns("b", "rb"))
SINGLE = (user("Which is larger?"), *PARALLEL, says("b is."))


class TestSingle:
    def test_each_parallel_call_is_a_branch_behind_what_came_before(self) -> None:
        made = record("toucan_single", row({"role": "system", "content": "tools"}, *SINGLE))
        assert [branch.text for branch in made.branches] == [
            f"{spelled('a', 1)}\n\n[TOOL_RESPONSE 1]\nra",
            f"{spelled('b', 2)}\n\n[TOOL_RESPONSE 2]\nrb",
        ]
        prefix = "[USER]\nWhich is larger?\n\n[ASSISTANT]\nI look both up.\n\n"
        assert {branch.prefix for branch in made.branches} == {prefix}
        assert made.query.endswith("Question: Which is larger?") and made.target == "b is."
        assert (made.id, made.meta) == ("u", {"subset_name": "single-turn-original"})

    def test_the_question_of_the_row_comes_first(self) -> None:
        assert record("toucan_single", row(*SINGLE, question="Larger?")).query.endswith("Question: Larger?")

    def test_branches_are_the_burst_and_other_calls_are_in_the_query(self) -> None:
        messages = (
            *SINGLE[:1],
            calls("x", "First x."),
            returns("x", "rx"),
            *PARALLEL,
            calls("y"),
            returns("y", "ry"),
            SINGLE[-1],
        )
        made = record("toucan_single", row(*messages))
        assert [branch.text.partition("\n[")[0] for branch in made.branches] == [
            spelled("a", 1) + "\n",
            spelled("b", 2) + "\n",
        ]
        assert "rx" in made.branches[0].prefix and "ry" not in made.branches[0].prefix
        assert f"{spelled('x', 1)}\n\n[TOOL_RESPONSE 1]\nrx" in made.query
        assert f"{spelled('y', 2)}\n\n[TOOL_RESPONSE 2]\nry" in made.query

    def test_the_published_block_has_all_calls_between_two_messages(self) -> None:
        messages = (
            *SINGLE[:1],
            calls("x", "First x."),
            returns("x", "rx"),
            *PARALLEL,
            calls("y"),
            returns("y", "ry"),
            SINGLE[-1],
        )
        made = record("toucan_single", row(*messages), calls="block")
        assert [
            spelled(name, n) in branch.text for n, (name, branch) in enumerate(zip("aby", made.branches, strict=True), 1)
        ]
        assert "ry" in made.branches[2].text and "Other calls" not in made.query

    def test_the_last_parallel_burst_is_taken(self) -> None:
        later = (calls("c", "Again."), calls("d"), calls("e"), returns("c", "rc"), returns("d", "rd"), returns("e", "re"))
        made = record("toucan_single", row(*SINGLE[:-1], *later, SINGLE[-1]))
        assert ["r" + name in branch.text for name, branch in zip("cde", made.branches, strict=True)] == [True] * 3

    @pytest.mark.parametrize(
        ("messages", "paired"),
        [
            (
                (calls("a", call_id=1), calls("a", call_id=2), returns("a", "r2", call_id=2), returns("a", "r1", call_id=1)),
                ["r1", "r2"],
            ),
            (
                (
                    calls("a", extra={"function_id": "f1"}),
                    calls("a", extra={"function_id": "f2"}),
                    returns("a", "r2", extra={"function_id": "f2"}),
                    returns("a", "r1", extra={"function_id": "f1"}),
                ),
                ["r1", "r2"],
            ),
            ((calls("a"), calls("b"), returns("b", "rb"), returns("a", "ra")), ["ra", "rb"]),
            ((calls("a", id=1), calls("b", id=2), returns("b", "rb", id=3), returns("a", "ra", id=4)), ["ra", "rb"]),
            ((calls("a"), calls("b"), returns("", "1"), returns("", "2")), ["1", "2"]),
            ((calls("a"), calls("b"), returns("b", "rb")), ["", "rb"]),
        ],
        ids=["ids", "ids of Qwen-Agent", "names", "ids of messages", "order", "one missing"],
    )
    def test_responses_find_their_calls(self, messages: tuple[dict[str, Any], ...], paired: list[str]) -> None:
        made = record("toucan_single", row(user("q"), *messages, says("done")))
        assert [branch.text.partition("]\n")[2].partition("]\n")[2] for branch in made.branches] == paired

    def test_a_missing_response_does_not_take_a_later_one(self) -> None:
        messages = (user("q"), calls("a"), calls("b"), returns("a", "ra"), calls("c"), returns("c", "rc"), says("done"))
        made = record("toucan_single", row(*messages))
        assert ["rc" in branch.text for branch in made.branches] == [False, False] and "rc" in made.query

    def test_other_forms_of_messages(self) -> None:
        native = (
            user("q"),
            {"role": "tool_call", "content": '{"name": "a", "arguments": {"of": "a"}}'},
            {"role": "tool_call", "content": "{'name': 'b', 'arguments': {'of': 'b'}}"},
            {"role": "tool_response", "content": "ra"},
            {"role": "tool_response", "content": {"value": 1}},
            says("done"),
        )
        tool_calls = [{"id": n, "function": {"name": n, "arguments": json.dumps({"of": n})}} for n in "ab"]
        openai = (
            user("q"),
            says("", tool_calls=tool_calls),
            {"role": "tool", "tool_call_id": "b", "content": '{"value": 1}'},
            {"role": "tool", "tool_call_id": "a", "content": "ra"},
            says("done"),
        )
        first, second = (record("toucan_single", row(*messages)) for messages in (native, openai))
        assert first.branches == second.branches
        assert first.branches[1].text == f'{spelled("b", 2)}\n\n[TOOL_RESPONSE 2]\n{{"value": 1}}'

    def test_thoughts_are_plans_but_no_answers(self) -> None:
        messages = (user("q"), calls("a", reasoning_content="I think."), *SINGLE[2:])
        assert record("toucan_single", row(*messages)).branches[0].prefix.endswith("[ASSISTANT]\nI think.\n\n")
        ending = (*SINGLE[:-1], says("", reasoning_content="Hm."))
        assert reason("toucan_single", row(*ending)) == "it does not end with the assistant's answer"

    @pytest.mark.parametrize(
        ("change", "options", "said"),
        [
            ({"messages": "not JSON"}, {}, "messages is no JSON list"),
            ({"messages": '{"role": "user"}'}, {}, "messages is no JSON list"),
            ({"messages": None}, {}, "it does not end with the assistant's answer"),
            ({"messages": [*SINGLE[:-1]]}, {}, "it does not end with the assistant's answer"),
            ({"messages": [user("q"), calls("a"), returns("a", "r"), says("x")]}, {}, "no calls in parallel"),
            ({"messages": [*SINGLE[1:]]}, {}, "no question"),
            ({"messages": [*SINGLE, user("and?"), says("no")]}, {}, "several turns: a row of toucan_multi"),
            ({"subset_name": "multi-turn"}, {}, "several turns: a row of toucan_multi"),
            ({"messages": [{"role": "judge", "content": "x"}]}, {}, "a message has a role that is unknown"),
            ({"messages": [1]}, {}, "messages has a message that is no object"),
            ({}, {"min_branches": 3}, "too few calls"),
        ],
    )
    def test_what_is_dropped(self, change: dict[str, Any], options: dict[str, Any], said: str) -> None:
        assert reason("toucan_single", row(*SINGLE) | change, **options) == said


class TestMulti:
    TURNS = (
        *(user("q1"), calls("a", "plan 1"), returns("a", "ra"), says("answer 1")),
        *(user("q2"), says("no tool needed")),
        *(
            user("q3"),
            user("q3, too"),
            calls("b", "plan 3"),
            calls("c"),
            returns("b", "rb"),
            returns("c", "rc"),
            says("answer 3"),
        ),
        *(user("q4"), calls("d", "plan 4"), returns("d", "rd"), says("answer 4")),
    )

    def row(self, *messages: dict[str, Any], **extra: Any) -> dict[str, Any]:
        return row(*(messages or self.TURNS), subset_name="multi-turn", **extra)

    def test_turns_are_branches_and_the_plan_is_learned(self) -> None:
        made = record("toucan_multi", self.row())
        assert [branch.text for branch in made.branches] == [
            f"Earlier turn 1:\n[USER_QUERY]\nq1\n\n[ASSISTANT_PLANNING]\nplan 1\n\n{spelled('a', 1)}\n\n"
            "[TOOL_RESPONSE 1]\nra\n\n[ASSISTANT_RESPONSE]\nanswer 1",
            "Earlier turn 2:\n[USER_QUERY]\nq2\n\n[ASSISTANT_RESPONSE]\nno tool needed",
            f"Earlier turn 3:\n[USER_QUERY]\nq3\n\nq3, too\n\n[ASSISTANT_PLANNING]\nplan 3\n\n{spelled('b', 1)}\n\n"
            f"[TOOL_RESPONSE 1]\nrb\n\n{spelled('c', 2)}\n\n[TOOL_RESPONSE 2]\nrc\n\n[ASSISTANT_RESPONSE]\nanswer 3",
        ]
        assert made.query.endswith("Message: q4") and made.target == "plan 4"
        assert "answer 4" not in str(made.to_json())

    def test_turns_after_the_last_calls_are_not_asked(self) -> None:
        made = record("toucan_multi", self.row(*self.TURNS, user("thanks"), says("welcome")))
        assert made.target == "plan 4" and len(made.branches) == 3

    def test_a_turn_of_several_bursts_only_when_allowed(self) -> None:
        turns = (*self.TURNS[:3], calls("x"), returns("x", "rx"), *self.TURNS[3:])
        assert reason("toucan_multi", self.row(*turns)) == "a turn has several bursts of calls"
        assert "rx" in record("toucan_multi", self.row(*turns), single_burst=False).branches[0].text

    def test_what_is_dropped(self) -> None:
        assert reason("toucan_multi", row(*SINGLE)) == "one turn: a row of toucan_single"
        assert reason("toucan_multi", self.row(*self.TURNS[:4])) == "too few turns"
        assert reason("toucan_multi", self.row(), min_branches=4) == "too few turns"
        unplanned = (*self.TURNS[:-3], calls("d"), *self.TURNS[-2:])
        assert reason("toucan_multi", self.row(*unplanned)) == "no plan before the last calls"
