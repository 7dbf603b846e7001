"""All sources alike: the registry, options, ids, and rows in which anything may be anything."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.data.record import Record, read_records, write_records
from psynth_jax.data.sources import SOURCES, Dropped, convert_rows, read_rows
from psynth_jax.errors import ConfigError, DataError
from tests.data.sources import (
    test_attempts,
    test_chats,
    test_dta_tool,
    test_flan,
    test_multihop,
    test_prepared,
    test_squad,
    test_toucan,
)
from tests.data.sources.converting import convert, record

TALK = [{"from": who, "value": what} for who, what in (("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2"))]
MULTI = test_toucan.TestMulti()
GOOD: dict[str, dict[str, Any]] = {
    "wildchat": test_chats.TestWildChat.ROW,
    "lmsys_chat": test_chats.TestLMSYS.ROW,
    "ultrachat": {"prompt_id": "p", "messages": test_chats.THREE_TURNS},
    "sharegpt": {"id": "s", "source": "here", "conversations": TALK},
    "toucan_single": test_toucan.row() | {"messages": [*test_toucan.SINGLE]},
    "toucan_multi": MULTI.row() | {"messages": [*MULTI.TURNS]},
    "dta_tool": test_dta_tool.row(*test_dta_tool.TURNS),
    "flan": test_flan.row(test_flan.TestForward.BY_BLANKS),
    "flan_cot": test_flan.TestGroups.ROW,
    "2wikimultihopqa": test_multihop.ROW | {"answer_aliases": ["A."]},
    "hotpotqa": test_multihop.ROW | test_multihop.HUB_FORM,
    "squad": test_squad.ONE_QUESTION,
    "attempts": test_attempts.ROW,
    "browsecomp": test_prepared.ROW
    | {"agent_extract_contexts": ["found x", "found y"], "query": "Which?", "answer": "this"},
    "records": {"id": "r", "task": "t", "query": "q", "target": "a", "branches": [{"text": "b"}], "meta": {"x": 1}},
}
ODD = (
    None,
    True,
    3,
    1.5,
    float("nan"),
    "",
    " ",
    "\ud800",
    "[",
    "[1]",
    "{}",
    "[[[",
    [],
    [None],
    [[]],
    ["a", "b"],
    {},
    {"a": None},
    [{}],
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Go through the places of everything inside a row."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


def with_odd(row: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(row)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def test_every_source_has_a_row_here_and_its_name() -> None:
    assert set(SOURCES) == set(GOOD) and all(source.name == name for name, source in SOURCES.items())
    assert all(source.description and source.options.__doc__ for source in SOURCES.values())


@pytest.mark.parametrize("name", SOURCES)
def test_rows_give_records_that_can_be_written(name: str, tmp_path: Path) -> None:
    made = record(name, GOOD[name])
    assert made.task == name or name == "records"
    write_records(tmp_path / "x.jsonl", [made])
    (back,) = read_records(tmp_path / "x.jsonl")
    assert json.dumps(back.to_json()) == json.dumps(made.to_json())


@pytest.mark.parametrize("name", SOURCES)
def test_odd_values_anywhere_are_dropped_or_named(name: str) -> None:
    """Each value of a good row, replaced by each odd one or taken away."""
    good = GOOD[name]
    rows = [with_odd(good, path, value) for path in places(good) for value in ODD]
    rows += [{key: value for key, value in good.items() if key != gone} for gone in good]
    rows.append({})
    dropped = [item for row in rows for item in outcome(name, row) if isinstance(item, Dropped)]
    assert 0 < len(dropped) < len(rows)
    assert all(item.reason and "\n" not in item.reason for item in dropped)
    errors = [item.reason for item in dropped if item.reason.startswith("rows:1: ")]
    assert len(errors) == (len(dropped) if name == "records" else 0)


def outcome(name: str, row: dict[str, Any]) -> list[Record | Dropped]:
    """Convert a row; an error is a reason here.  What is a record can be written."""
    try:
        items = convert(name, row)
    except DataError as error:
        return [Dropped(str(error))]
    for item in items:
        if isinstance(item, Record) and name != "records":
            json.dumps(item.to_json(), ensure_ascii=False, allow_nan=False).encode()
    return items


class TestOptions:
    def test_texts_become_values(self) -> None:
        options = SOURCES["wildchat"].parse_options(["min_turns=4", "english_only=True", "drop_redacted=false"])
        assert (options.min_turns, options.english_only, options.drop_redacted, options.min_branches) == (4, True, False, 1)
        assert SOURCES["hotpotqa"].parse_options(["style=published"]).style == "published"
        assert SOURCES["browsecomp"].parse_options(["task=search"]).task == "search"

    @pytest.mark.parametrize(
        ("name", "pairs", "said"),
        [
            ("flan", ["english_only=true"], "'english_only=true' is no option of flan; .* min_branches, max_contexts"),
            ("flan", ["min_branches"], "write key=value"),
            ("flan", ["min_branches=2", "min_branches=3"], "is given twice"),
            ("flan", ["min_branches=0"], "min_branches: Input should be greater than or equal to 1"),
            ("flan", ["max_contexts=few"], "max_contexts: Input should be a valid integer"),
            ("hotpotqa", ["style=long"], "style: Input should be 'short' or 'published'"),
            ("records", ["task=x"], "with a key of: none"),
        ],
    )
    def test_wrong_ones_are_named(self, name: str, pairs: list[str], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            SOURCES[name].parse_options(pairs)

    FLIPS = (
        *(("ultrachat", "min_turns", 4), ("ultrachat", "min_branches", 3), ("ultrachat", "max_contexts", 1)),
        *(("sharegpt", "min_turns", 3), ("sharegpt", "min_branches", 2), ("sharegpt", "max_contexts", 1)),
        *(("toucan_single", "calls", "block"), ("toucan_single", "min_branches", 3)),
        *(("toucan_multi", "min_branches", 4), ("toucan_multi", "single_burst", False)),
        *(("dta_tool", "style", "short"), ("dta_tool", "min_calls", 3), ("dta_tool", "keep_system", False)),
        *(("flan", "min_branches", 3), ("flan", "max_contexts", 1)),
        *(("flan_cot", "min_branches", 3), ("flan_cot", "max_contexts", 1), ("flan_cot", "rationale", False)),
        *(("hotpotqa", "style", "published"), ("hotpotqa", "max_contexts", 1), ("hotpotqa", "exact_contexts", 2)),
        ("hotpotqa", "complete_support", True),
        *(("squad", "contexts", 2), ("squad", "seed", 1)),
        ("attempts", "split", "validation"),
        *(("browsecomp", "task", "search"), ("browsecomp", "max_contexts", 1)),
        *((name, field, value) for name, turns in (("wildchat", 4), ("lmsys_chat", 4)) for field, value in (
            ("min_turns", turns), ("min_branches", 3), ("max_contexts", 1), ("english_only", True),
            ("message_languages", False), ("drop_redacted", True), ("drop_toxic", True))),
    )  # fmt: skip

    def row_for(self, name: str, field: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a row on which the field matters, and the other options that it takes."""
        row, others = copy.deepcopy(GOOD[name]), {}
        if name in ("wildchat", "lmsys_chat"):
            row |= {"redacted": field == "drop_redacted", "toxic": field == "drop_toxic"}
            if field in ("english_only", "message_languages"):
                row["conversation"][0]["language"] = "French"
                others = {"english_only": True} if field == "message_languages" else {}
        if (name, field) == ("sharegpt", "max_contexts"):
            row["conversations"] = [*TALK, *TALK]
        if field == "single_burst":
            row["messages"] = [*MULTI.TURNS[:3], *MULTI.TURNS[1:]]
        if field == "calls":
            row["messages"] = [
                *test_toucan.SINGLE[:-1],
                test_toucan.calls("c"),
                test_toucan.returns("c", "rc"),
                *MULTI.TURNS[3:4],
            ]
        if field == "complete_support":
            row["supporting_facts"] = [["Nobody", 0]]
        return row, others

    @pytest.mark.parametrize(("name", "field", "value"), FLIPS)
    def test_every_option_changes_something(self, name: str, field: str, value: Any) -> None:
        row, others = self.row_for(name, field)
        assert convert(name, row, **others) != convert(name, row, **others, **{field: value})

    def test_no_option_is_left_out_above(self) -> None:
        flipped = {(SOURCES[name].options, field) for name, field, _ in self.FLIPS}
        assert flipped == {(source.options, field) for source in SOURCES.values() for field in source.options.model_fields}

    def test_the_documentation_has_them_all(self) -> None:
        told = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
        for source in SOURCES.values():
            assert f"\n| {source.name} |" in told, source.name
            assert (source.revision or "")[:8] in told and (source.hub_id or "") in told
            assert [field for field in source.options.model_fields if f"\n| {field}" not in told and field != "task"] == []


class TestIds:
    def test_second_copies_are_dropped_and_other_records_get_another_id(self) -> None:
        first = {"prompt_id": "p", "messages": test_chats.THREE_TURNS}
        other = {"prompt_id": "p", "messages": test_chats.talk("q1", "a1", "q2", "a2", "q3", "another end")}
        items = convert("ultrachat", first, other, first, other)
        assert [item.id for item in items[:2] if isinstance(item, Record)] == ["p", "p-2"]
        assert items[2:] == [Dropped("the same record was there before")] * 2

    def test_errors_carry_the_place(self) -> None:
        with pytest.raises(DataError, match=r"^x.jsonl:7: record 'r' has no branches"):
            list(convert_rows(SOURCES["records"], [("x.jsonl:7", GOOD["records"] | {"branches": []})]))


SHARED = Path(__file__).parents[4] / "shared" / "data"
DEV, TWO_WIKI = "hotpotqa/dev_distractor_first250.jsonl.gz", "2wikimultihopqa/composed_first49.jsonl"


@pytest.mark.parametrize(
    ("name", "file", "records", "reasons"),
    [
        ("hotpotqa", "hotpotqa/train_100.jsonl", 100, set()),
        ("hotpotqa", DEV, 248, {"no paragraph with text"}),
        ("2wikimultihopqa", TWO_WIKI, 49, set()),
        ("sharegpt", "chat/multi_turn_sharegpt.jsonl.gz", 186, set()),
        ("flan_cot", "fewshot/flan_cot_5shot_sample.jsonl", 300, set()),
    ],
)
def test_real_files(name: str, file: str, records: int, reasons: set[str]) -> None:
    if not (SHARED / file).is_file():
        pytest.skip(f"there is no {file} next to the checkout")
    items = list(convert_rows(SOURCES[name], read_rows(SHARED / file)))
    assert sum(isinstance(item, Record) for item in items) == records
    assert {item.reason for item in items if isinstance(item, Dropped)} == reasons


@pytest.mark.parametrize(("name", "file", "records"), [("hotpotqa", DEV, 79), ("2wikimultihopqa", TWO_WIKI, 49)])
def test_complete_support_holds_the_answer(name: str, file: str, records: int) -> None:
    """Contexts of the HotpotQA file were found by a search: most of its questions lack a supporting paragraph."""
    if not (SHARED / file).is_file():
        pytest.skip(f"there is no {file} next to the checkout")
    source = SOURCES[name]
    items = convert_rows(source, read_rows(SHARED / file), source.parse_options(["complete_support=true"]))
    made = [item for item in items if isinstance(item, Record)]
    named = [one for one in made if one.target.lower() not in ("yes", "no")]
    held = [one for one in named if any(one.target in branch.text for branch in one.branches)]
    assert len(made) == records and len(held) > 0.8 * len(named)
