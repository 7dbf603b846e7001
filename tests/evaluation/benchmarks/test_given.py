"""Answers from a file: in the order of the questions, or an error that names the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion
from psynth_jax.evaluation.benchmarks.given import read_answers

QUESTIONS = [BenchmarkQuestion(name, "t", "?", (), ("1",)) for name in ("a", "1", "c")]


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_order_and_limit(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl", {"id": "c", "text": "C", "more": 1}, {"id": "a", "text": ""}, {"id": "1", "text": "B"}
    )
    assert read_answers(path, QUESTIONS, QUESTIONS) == ["", "B", "C"]
    path = written(tmp_path / "b.jsonl", {"id": "c", "text": "C"}, {"id": "a", "text": "A"})
    assert read_answers(path, QUESTIONS[:1], QUESTIONS) == ["A"]


def test_a_number_stands_for_a_row(tmp_path: Path) -> None:
    """Counted from 0; where a row's own id is a number, that comes first: "1" is the second row's id, not its number."""
    path = written(tmp_path / "a.jsonl", {"id": "0", "text": "A"}, {"id": "1", "text": "B"}, {"id": "2", "text": "C"})
    assert read_answers(path, QUESTIONS, QUESTIONS) == ["A", "B", "C"]
    path = written(tmp_path / "b.jsonl", {"id": "0", "text": "A"}, {"id": "a", "text": "B"})
    with pytest.raises(DataError, match=r"b\.jsonl:2: the id 'a' is there twice"):
        read_answers(path, QUESTIONS[:1], QUESTIONS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "a", "text": "A"}], "a.jsonl has no answer to question '1' and to 1 more"),
        ([{"id": "a", "text": "A"}, {"id": "1", "text": "A"}], "a.jsonl has no answer to question 'c'"),
        ([{"id": "x", "text": "A"}], "a.jsonl:1: no question has the id 'x'"),
        ([{"id": "a", "text": "A"}, {"id": "a", "text": "A"}], "a.jsonl:2: the id 'a' is there twice"),
        ([{"id": 1, "text": "A"}], "a.jsonl:1: 'id' must be a text, not 1"),
        ([{"text": "A"}], "a.jsonl:1: 'id' must be a text, not None"),
        ([{"id": "a", "text": None}], "a.jsonl:1: 'text' must be a text, not None"),
    ],
)
def test_errors(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = written(tmp_path / "a.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        read_answers(path, QUESTIONS, QUESTIONS)
    assert str(caught.value).endswith(message) and "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^there is no"):
        read_answers(str(tmp_path / "none.jsonl"), QUESTIONS, QUESTIONS)
