"""AIME: rows of every form, gold answers, both rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.aime import AIME, AIME24, AIME25
from tests.evaluation.benchmarks.rows_files import FORMS, written
from tests.evaluation.benchmarks.shared_rows import shared

ROWS = [
    {"id": "aime24-0", "problem": "Find n.", "answer": 73},
    {
        "id": 61,
        "problem": "Find m.",
        "solution": "...",
        "answer": "025",
        "url": "x",
        "year": "2024",
    },
    {"problem": "Find k.", "answer": 0},
]


@pytest.mark.parametrize("form", FORMS)
def test_rows(tmp_path: Path, form: str) -> None:
    questions = AIME24(written(tmp_path, form, ROWS)).questions()
    told = [(question.id, question.task, question.answers) for question in questions]
    assert told == [
        ("aime24-0", "aime24", ("73",)),
        ("61", "aime24", ("25",)),
        ("2", "aime24", ("0",)),
    ]
    assert questions[0].worker_prompt.endswith("\n\nProblem:\nFind n.")
    assert questions[0].query.startswith("Find n.\n\nEnd with the final answer")


def test_both_rules(tmp_path: Path) -> None:
    benchmark = AIME24(written(tmp_path, "rows.jsonl", ROWS))
    question = benchmark.questions()[1]
    told = {
        r"\boxed{25}": (1, 1),
        r"\boxed{025}": (1, 1),
        r"\boxed{25.0}": (1, 0),
        r"\boxed{m+n=25}": (1, 1),
        r"\boxed{5^2}": (1, 0),
        r"\boxed{\sqrt{625}}": (1, 0),
        r"\boxed{24}": (0, 0),
        "25": (1, 1),
    }
    for text, (right, published) in told.items():
        assert benchmark.judged(text, question)[1] == {
            "accuracy": right,
            "accuracy_published": published,
        }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "?"}, "the row lacks the field 'answer'"),
        ({"answer": 1}, "the row lacks the field 'problem' or 'question'"),
        (
            {"problem": "?", "answer": 1000},
            "'answer' must be a whole number from 0 to 999, not '1000'",
        ),
        ({"problem": "?", "answer": "x"}, "'answer' must be a whole number from 0 to 999, not 'x'"),
        ({"problem": "?", "answer": -1}, "'answer' must be a whole number from 0 to 999, not '-1'"),
        ({"problem": "?", "answer": 7.5}, "'answer' must be a text that is not empty, not 7.5"),
        ({"problem": "?", "answer": True}, "'answer' must be a text that is not empty, not True"),
    ],
)
def test_errors(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = written(tmp_path, "rows.jsonl", [row])
    with pytest.raises(DataError) as caught:
        AIME24(path).questions()
    assert str(caught.value) == f"{path}:1: {message}"


def test_an_answer_of_thousands_of_digits(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", [{"problem": "?", "answer": "9" * 5000}])
    message = r"rows\.jsonl:1: 'answer' must be a whole number from 0 to 999, not '999"
    with pytest.raises(DataError, match=message):
        AIME24(path).questions()
    path = written(tmp_path, "rows.jsonl", [{"problem": "?", "answer": "0" * 5000 + "73"}])
    assert AIME24(path).questions()[0].answers == ("73",)


SHARED = [(AIME24, "aime/aime2024.jsonl"), (AIME25, "aime/aime2025.jsonl")]


@pytest.mark.parametrize(("benchmark", "file"), SHARED)
def test_shared_rows(benchmark: type[AIME], file: str) -> None:
    task = benchmark(shared(file))
    questions = task.questions()
    assert len(questions) == 30
    for question in questions:
        scores = task.judged(rf"\boxed{{{question.answers[0]}}}", question)[1]
        assert scores == {"accuracy": 1, "accuracy_published": 1}
