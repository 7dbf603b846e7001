"""Conversations: exchanges become branches, no word of the user is lost, and each filter drops what it is for."""

from __future__ import annotations

import datetime
from typing import Any, ClassVar

import pytest

from tests.data.sources.converting import convert, reason, record


def talk(*contents: str, **extra: Any) -> list[dict[str, Any]]:
    """A conversation that alternates, the user first."""
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": content, **extra} for n, content in enumerate(contents)]


THREE_TURNS = talk("q1", "a1", "q2", "a2", "q3", "a3")


class TestConstruction:
    def test_exchanges_query_and_target(self) -> None:
        made = record("ultrachat", {"prompt_id": "p", "messages": THREE_TURNS})
        assert (made.id, made.task, made.target, made.meta) == ("p", "ultrachat", "a3", {"turns": 3})
        assert [branch.text for branch in made.branches] == [
            "Earlier exchange 1:\n[USER_1]\nq1\n\n[ASSISTANT_2]\na1",
            "Earlier exchange 2:\n[USER_1]\nq2\n\n[ASSISTANT_2]\na2",
        ]
        assert all(branch.prefix == "" for branch in made.branches)
        assert made.query.endswith("Message: q3") and "q1" not in made.query and "a2" not in made.query

    def test_messages_of_one_role_in_a_row_are_one(self) -> None:
        messages = [
            *(
                {"role": "user", "content": "q1"},
                {"role": "user", "content": "and q1b"},
                {"role": "assistant", "content": "a1"},
            ),
            *(
                {"role": "user", "content": "q2"},
                {"role": "assistant", "content": "a2"},
                {"role": "assistant", "content": "a2b"},
            ),
        ]
        made = record("ultrachat", {"messages": messages}, min_branches=1)
        assert made.branches[0].text.endswith("[USER_1]\nq1\n\nand q1b\n\n[ASSISTANT_2]\na1")
        assert made.target == "a2\n\na2b"

    def test_opening_words_of_the_assistant_stay_with_the_first_exchange(self) -> None:
        messages = [{"role": "assistant", "content": "Hello"}, *THREE_TURNS]
        made = record("ultrachat", {"messages": messages})
        assert len(made.branches) == 2
        assert made.branches[0].text.endswith("[ASSISTANT_1]\nHello\n\n[USER_2]\nq1\n\n[ASSISTANT_3]\na1")

    def test_empty_messages_are_passed_over(self) -> None:
        messages = [*THREE_TURNS, {"role": "user", "content": "  "}, {"role": None, "content": "lost"}]
        assert record("ultrachat", {"messages": messages}).target == "a3"

    def test_only_the_latest_exchanges(self) -> None:
        made = record("ultrachat", {"messages": THREE_TURNS}, max_contexts=1)
        assert [branch.text.partition("\n")[2] for branch in made.branches] == ["[USER_1]\nq2\n\n[ASSISTANT_2]\na2"]

    def test_a_row_without_id_has_one_of_its_content(self) -> None:
        first, second = (record("ultrachat", {"messages": talk("q1", "a1", "q2", "a2", "q3", end)}) for end in ("x", "y"))
        assert first.id != second.id
        assert first.id == record("ultrachat", {"messages": talk("q1", "a1", "q2", "a2", "q3", "x")}).id

    @pytest.mark.parametrize(
        ("messages", "options", "said"),
        [
            ([], {}, "the conversation is empty"),
            (None, {}, "the conversation is empty"),
            (talk("q1", "a1", "q2", "a2"), {}, "too few turns"),
            (talk("q1", "a1", "q2", "a2", "q3"), {}, "the last message is not the assistant's"),
            (
                [{"role": "system", "content": "s"}, *THREE_TURNS],
                {},
                "a message is neither of the user nor of the assistant",
            ),
            (THREE_TURNS, {"min_branches": 3}, "too few earlier exchanges"),
            (THREE_TURNS, {"min_turns": 4}, "too few turns"),
            ([{"role": "user", "content": ["a picture"]}], {}, "content of a message is no text"),
            ("hello", {}, "messages is no list"),
            (["hello"], {}, "messages has a message that is no object"),
        ],
    )
    def test_what_is_dropped(self, messages: Any, options: dict[str, Any], said: str) -> None:
        assert reason("ultrachat", {"messages": messages}, **options) == said


class TestWildChat:
    ROW: ClassVar[dict[str, Any]] = {
        "conversation_hash": "h",
        "model": "gpt-4",
        "timestamp": datetime.datetime(2024, 1, 2, 3, 4, 5),
        "language": "English",
        "redacted": False,
        "toxic": False,
        "turn": 3,
        "conversation": [
            {**message, "language": "English", "redacted": False, "toxic": False, "turn_identifier": 70 + n // 2}
            for n, message in enumerate(THREE_TURNS)
        ],
    }

    def changed(self, index: int | None = None, **change: Any) -> dict[str, Any]:
        if index is None:
            return {**self.ROW, **change}
        messages = [dict(message) for message in self.ROW["conversation"]]
        messages[index].update(change)
        return {**self.ROW, "conversation": messages}

    def test_the_id_has_the_identifier_of_the_last_turn(self) -> None:
        made = record("wildchat", self.ROW)
        assert made.id == "h_72"
        assert made.meta == {
            "model": "gpt-4",
            "language": "English",
            "redacted": False,
            "toxic": False,
            "timestamp": "2024-01-02T03:04:05",
            "turns": 3,
        }

    def test_a_longer_copy_of_a_conversation_has_another_id(self) -> None:
        longer = [*self.ROW["conversation"], *({**m, "turn_identifier": 90} for m in talk("q4", "a4"))]
        items = convert("wildchat", self.ROW, self.changed(conversation=longer))
        assert [item.id for item in items] == ["h_72", "h_90"]

    def test_without_identifiers_the_content_tells_conversations_apart(self) -> None:
        plain = self.changed(conversation=THREE_TURNS)
        other = self.changed(conversation=talk("q1", "a1", "q2", "a2", "q3", "other"))
        ids = [item.id for item in convert("wildchat", plain, other)]
        assert len({*ids}) == 2 and all(one.startswith("h_") for one in ids)

    def test_one_earlier_exchange_is_enough(self) -> None:
        row = self.changed(conversation=talk("q1", "a1", "q2", "a2"))
        assert len(record("wildchat", row, min_turns=2).branches) == 1

    def test_filters_are_off_unless_asked_for(self) -> None:
        for row in (self.changed(language="German"), self.changed(redacted=True), self.changed(1, toxic=True)):
            assert record("wildchat", row).branches == record("wildchat", self.ROW).branches

    @pytest.mark.parametrize(
        ("change", "options", "said"),
        [
            ({"language": "German"}, {"english_only": True}, "the conversation is not English"),
            ({"language": None}, {"english_only": True}, "the conversation is not English"),
            ({"index": 2, "language": "French"}, {"english_only": True}, "a message is not English"),
            ({"redacted": True}, {"drop_redacted": True}, "something is redacted"),
            ({"index": 0, "redacted": True}, {"drop_redacted": True}, "something is redacted"),
            ({"toxic": True}, {"drop_toxic": True}, "something is toxic"),
            ({"index": 3, "toxic": True}, {"drop_toxic": True}, "something is toxic"),
        ],
    )
    def test_filters(self, change: dict[str, Any], options: dict[str, Any], said: str) -> None:
        assert reason("wildchat", self.changed(**change), **options) == said
        record("wildchat", self.ROW, **options)

    def test_languages_of_messages_can_be_left_unchecked(self) -> None:
        found = record("wildchat", self.changed(2, language="French"), english_only=True, message_languages=False)
        assert found.branches == record("wildchat", self.ROW).branches


class TestLMSYS:
    ROW: ClassVar[dict[str, Any]] = {
        "conversation_id": "c1",
        "model": "vicuna-13b",
        "conversation": THREE_TURNS,
        "turn": 3,
        "language": "English",
        "openai_moderation": [{"flagged": False}, {"flagged": True}],
        "redacted": False,
    }

    def test_record(self) -> None:
        made = record("lmsys_chat", self.ROW)
        assert (made.id, made.task, len(made.branches)) == ("c1", "lmsys_chat", 2)
        assert made.meta == {"model": "vicuna-13b", "language": "English", "redacted": False, "turns": 3}

    def test_moderation_is_read(self) -> None:
        assert reason("lmsys_chat", self.ROW, drop_toxic=True) == "something is toxic"
        record("lmsys_chat", {**self.ROW, "openai_moderation": [{"flagged": False}]}, drop_toxic=True)

    def test_two_earlier_exchanges_are_needed(self) -> None:
        row = {**self.ROW, "conversation": talk("q1", "a1", "q2", "a2")}
        assert reason("lmsys_chat", row, min_turns=2) == "too few earlier exchanges"


class TestShareGPT:
    @staticmethod
    def row(*turns: tuple[str, str]) -> dict[str, Any]:
        return {"id": "s", "source": "here", "conversations": [{"from": who, "value": what} for who, what in turns]}

    def test_names_of_roles_and_the_system_message(self) -> None:
        turns = (("system", "Be kind."), ("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2"))
        made = record("sharegpt", self.row(*turns))
        assert made.branches[0].text == "Earlier exchange 1:\n[USER_1]\nq1\n\n[ASSISTANT_2]\na1"
        assert made.query.startswith("[SYSTEM]\nBe kind.\n\n") and made.target == "a2"
        assert made.meta == {"source": "here", "turns": 2}

    def test_other_roles_are_dropped(self) -> None:
        turns = (("human", "q1"), ("function_call", "{}"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2"))
        assert reason("sharegpt", self.row(*turns)) == "a message is neither of the user nor of the assistant"

    def test_one_turn_is_too_few(self) -> None:
        assert reason("sharegpt", self.row(("human", "q1"), ("gpt", "a1"))) == "too few turns"
