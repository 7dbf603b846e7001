"""DTA-Tool: calls at once become branches, and the answer right after them is learned."""

from __future__ import annotations

from typing import Any

import pytest

from psynth_jax.data.record import Record
from tests.data.sources.converting import convert, reason, record

ASK = ("assistant", "Thought: I need both.\nFunction Call: [{'name': 'a', 'arguments': {'x': \"it's ]\"}}, {'name': 'b'}]")
DONE = (
    "assistant",
    "Thought: Now I know.\n"
    'Function Call: [{"name": "Finish", "arguments": {"return_type": "give_answer", "final_answer": "42"}}]',
)
TURNS = (("system", "You have tools."), ("user", "How many?"), ASK, ("function", "ra"), ("function", "rb"), DONE)


def row(*turns: tuple[str, str], **extra: Any) -> dict[str, Any]:
    return {"id": "How many?", "conversations": [{"from": who, "value": what} for who, what in turns], **extra}


def test_published_style() -> None:
    made = record("dta_tool", row(*TURNS))
    assert [branch.text for branch in made.branches] == [
        '[PARALLEL_TOOL_CALL_1]\n{"name": "a", "arguments": {"x": "it\'s ]"}}\n\n[PARALLEL_TOOL_RESPONSE_1]\nra',
        '[PARALLEL_TOOL_CALL_2]\n{"name": "b"}\n\n[PARALLEL_TOOL_RESPONSE_2]\nrb',
    ]
    assert {branch.prefix for branch in made.branches} == {
        "[PREVIOUS_CONTEXT]\n[SYSTEM_1]\nYou have tools.\n\n[USER_2]\nHow many?\n\n"
        "[ASSISTANT_PRECALL_THOUGHT]\nI need both.\n\n"
    }
    assert made.target == "<think>\nNow I know.\n</think>\n\\boxed{42}"
    assert "\\boxed{}" in made.query and made.query.endswith("Question: How many?")


def test_short_style_and_no_system_prompt() -> None:
    made = record("dta_tool", row(*TURNS), style="short", keep_system=False)
    assert made.target == "42" and "boxed" not in made.query
    assert made.branches[0].prefix.startswith("[PREVIOUS_CONTEXT]\n[USER_1]\nHow many?\n\n")


def test_several_turns_of_a_row_give_several_records() -> None:
    other = (("user", "How few?"), ASK, ("function", "rc"), ("function", "rd"), DONE)
    first, second = convert("dta_tool", row(*TURNS, *other))
    assert isinstance(first, Record) and isinstance(second, Record)
    assert first.id != second.id and second.query.endswith("Question: How few?")
    assert "rd" in second.branches[1].text and "ra" in second.branches[1].prefix


def test_responses_are_paired_by_id_where_all_have_one() -> None:
    ask = ("assistant", 'Function Call: [{"name": "a", "id": "1"}, {"name": "b", "id": "2"}]')
    turns = row(*TURNS[:2], ask, ("function", "rb"), ("function", "ra"), DONE)
    turns["conversations"][3]["id"], turns["conversations"][4]["id"] = "2", "1"
    assert [branch.text[-2:] for branch in record("dta_tool", turns).branches] == ["ra", "rb"]


def test_the_row_id_is_the_question_when_nobody_asks() -> None:
    assert record("dta_tool", row(*TURNS[2:])).query.endswith("Question: How many?")


def test_finish_among_the_calls_is_no_branch() -> None:
    ask = ("assistant", 'Function Call: [{"name": "a"}, {"name": "b"}, {"name": "Finish"}]')
    assert len(record("dta_tool", row(*TURNS[:2], ask, *TURNS[3:])).branches) == 2


def test_arguments_may_be_spelled() -> None:
    done = ("assistant", 'Function Call: [{"name": "Finish", "arguments": "{\\"final_answer\\": \\"42\\"}"}]')
    assert record("dta_tool", row(*TURNS[:-1], done)).target == "\\boxed{42}"


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ((), "the conversation is empty"),
        (TURNS[:2], "no turn with enough calls at once"),
        (
            (*TURNS[:2], ("assistant", "Function Call: [{'name': 'a'}, {'name': "), *TURNS[3:]),
            "no turn with enough calls at once",
        ),
        ((*TURNS[:2], ("assistant", "Function Call: none"), *TURNS[3:]), "no turn with enough calls at once"),
        ((*TURNS[:4], DONE), "fewer responses than calls"),
        (TURNS[:-1], "no final answer right after the calls"),
        ((*TURNS[:-1], ("user", "well?"), DONE), "no final answer right after the calls"),
        ((*TURNS[:-1], ("assistant", "Function Call: [{'name': 'Finish'}]")), "no final answer right after the calls"),
    ],
)
def test_what_is_dropped(turns: tuple[tuple[str, str], ...], said: str) -> None:
    assert reason("dta_tool", row(*turns)) == said


def test_more_calls_can_be_asked_for() -> None:
    assert reason("dta_tool", row(*TURNS), min_calls=3) == "no turn with enough calls at once"


def test_without_any_question_the_row_is_dropped() -> None:
    assert reason("dta_tool", row(*TURNS[2:], id="")) == "no question"
