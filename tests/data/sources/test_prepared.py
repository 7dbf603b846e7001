"""Rows that are prepared already: the published code's form, and our own schema."""

from __future__ import annotations

from typing import Any

import pytest

from psynth_jax.data.record import BranchText, Record
from psynth_jax.errors import DataError
from tests.data.sources.converting import convert, reason, record

ROW = {
    "id": "b1",
    "dataset": "browsecomp",
    "question": "Which?",
    "gold": "this",
    "references": [{"citation": "c_1"}],
    "agent_reference_contexts": ["searched: found x", "searched: found y"],
}


def test_contexts_are_branches() -> None:
    made = record("browsecomp", ROW)
    assert made == Record(
        "b1",
        "browsecomp",
        "Which?",
        (BranchText("searched: found x"), BranchText("searched: found y")),
        "this",
        ("this",),
        {"dataset": "browsecomp"},
    )


def test_extracts_are_kept_and_what_is_before_them_is_prefix() -> None:
    row = {**ROW, "agent_extract_contexts": ["found x", "found y"], "query": "Which one?", "answer": "It is \\boxed{this}"}
    made = record("browsecomp", row, task="search")
    assert made.branches[0] == BranchText("found x", "searched: ")
    assert (made.task, made.query, made.target, made.answers) == ("search", "Which one?", "It is \\boxed{this}", ("this",))


def test_only_the_first_contexts() -> None:
    assert len(record("browsecomp", ROW, max_contexts=1).branches) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"agent_extract_contexts": ["found x"]}, "another number of extracts than of contexts"),
        ({"agent_extract_contexts": ["found x", "found z"]}, "an extract is not the end of its context"),
        ({"agent_extract_contexts": ["found x", ""]}, "an empty context or extract"),
        ({"agent_reference_contexts": []}, "no contexts"),
        ({"agent_reference_contexts": "one"}, "agent_reference_contexts is no list"),
        ({"references": 3}, "references is no list"),
        ({"question": None}, "no question"),
        ({"gold": ""}, "no answer"),
    ],
)
def test_what_is_dropped(change: dict[str, Any], said: str) -> None:
    assert reason("browsecomp", ROW | change) == said


def test_missing_fields_are_named() -> None:
    assert reason("browsecomp", {"question": "Which?", "gold": "this"}) == "missing references, agent_reference_contexts"


def test_our_own_schema_comes_back() -> None:
    made = record("browsecomp", ROW)
    assert record("records", made.to_json() | {"answers": ["this"]}) == made


def test_a_wrong_record_of_ours_is_an_error_with_its_place() -> None:
    with pytest.raises(DataError, match=r"^rows:2: record 'b1': missing target"):
        convert(
            "records",
            record("browsecomp", ROW).to_json() | {"answers": []},
            {"id": "b1", "task": "t", "query": "q", "branches": []},
        )
