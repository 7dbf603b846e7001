"""GPQA: rows of all three forms (made up), the order of options, what is kept out of files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.gpqa import GPQA
from psynth_jax.evaluation.benchmarks.registry import benchmark, names
from tests.evaluation.benchmarks.rows_files import FORMS, written

CANARY = "a canary of a made-up data set"


def of_authors(number: int) -> dict[str, str]:
    return {
        "Record ID": f"rec{number}",
        "Question": f"What is {number} + 1?",
        "Correct Answer": f"{number + 1} \n",
        "Incorrect Answer 1": f"{number + 2}",
        "Incorrect Answer 2": f"{number + 3}",
        "Incorrect Answer 3": f"{number + 4}",
        "Canary String": CANARY,
    }


@pytest.mark.parametrize("form", ["rows.csv", *FORMS])
def test_rows_of_the_authors(tmp_path: Path, form: str) -> None:
    rows = [of_authors(number) for number in range(40)]
    questions = GPQA(written(tmp_path, form, rows)).questions()
    assert [question.id for question in questions[:2]] == ["rec0", "rec1"]
    for number, question in enumerate(questions):
        (gold,) = question.answers
        assert f"({gold}) {number + 1}\n" in f"{question.query}\n".replace("\n\n", "\n")
        assert all(f") {number + wrong}" in question.worker_prompt for wrong in (2, 3, 4))
    assert {question.answers[0] for question in questions} == set("ABCD")
    assert CANARY not in json.dumps([dataclasses.asdict(question) for question in questions])


def test_the_order_follows_from_the_question(tmp_path: Path) -> None:
    rows = [of_authors(number) for number in range(20)]
    forwards = GPQA(written(tmp_path, "a.csv", rows)).questions()
    backwards = GPQA(written(tmp_path, "b.csv", rows[::-1])).questions()
    queries = [question.query for question in forwards]
    assert queries == [question.query for question in backwards[::-1]]
    golds = "".join(question.answers[0] for question in forwards)
    assert golds == "CDABCCADDCBADCADBCAC"
    assert GPQA("a.csv").settings() == {"benchmark": "gpqa", "revision": None}


def test_only_gpqa_is_private() -> None:
    private = [name for name in names() if benchmark(name, data="rows.jsonl").private]
    assert private == ["gpqa"]


@pytest.mark.parametrize("form", FORMS)
def test_rows_with_options_inside(tmp_path: Path, form: str) -> None:
    text = "Which is it?\nA. one\nB. two\nC. three\nD. four"
    rows = [
        {"question": text, "answer": "B", "canary": CANARY},
        {"question": f"{text}!", "answer": "d"},
    ]
    questions = GPQA(written(tmp_path, form, rows)).questions()
    assert [(question.id, question.answers) for question in questions] == [
        ("0", ("B",)),
        ("1", ("D",)),
    ]
    assert questions[0].query.startswith(f"{text}\n\nEnd with the letter")
    assert CANARY not in json.dumps([dataclasses.asdict(question) for question in questions])


def test_rows_with_a_list_of_options(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "Which?", "options": ["one", "two"], "answer": "two"},
        {
            "question": "Which?",
            "options": {"A": "x", "B": "y", "C": "z"},
            "answer": "(C)",
            "id": "own",
        },
    ]
    questions = GPQA(written(tmp_path, "rows.jsonl", rows)).questions()
    assert [(question.id, question.answers) for question in questions] == [
        ("0", ("B",)),
        ("own", ("C",)),
    ]
    assert questions[0].query.startswith("Which?\n\n(A) one\n(B) two\n\n")


def test_options_keep_their_letters(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "Which?", "options": {"B": "x", "A": "y"}, "answer": "B"},
        {"question": "Which?", "options": {"B": "xx", "A": "yy"}, "answer": "xx"},
        {"question": "Which?", "options": {"label": ["B", "A"], "text": ["x", "y"]}, "answer": "B"},
    ]
    for question in GPQA(written(tmp_path, "rows.jsonl", rows)).questions():
        assert question.answers == ("B",) and question.details["options"] == 2
        assert "(A) y" in question.query and "(B) x" in question.query


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "Which?", "answer": "A"},
            "'question' has no options A, B, ... in it, and the row lacks the field 'options'",
        ),
        (
            {"question": "?\nA) 1\nB) 2", "answer": "C"},
            "'answer' must be one of the letters A to B, not 'C'",
        ),
        (
            {"question": "?", "options": ["1"], "answer": "A"},
            "'options' must be an object, or a list of 2 to 10",
        ),
        (
            {"question": "?", "options": ["1", None], "answer": "A"},
            "option 'B' must be a number or a text that is not empty, not None",
        ),
        (
            {"question": "?", "options": ["1", "2"], "answer": 2},
            "'answer' must be one of the letters A to B, not '2'",
        ),
        ({"question": "?", "options": ["1", "2"]}, "the row lacks the field 'answer' or 'Answer'"),
        ({"Question": "?", "Correct Answer": "1"}, "the row lacks the field 'Incorrect Answer 1'"),
        ({"answer": "A"}, "the row lacks the field 'question' or 'Question'"),
    ],
)
def test_errors(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = written(tmp_path, "rows.jsonl", [row])
    with pytest.raises(DataError) as caught:
        GPQA(path).questions()
    assert str(caught.value) == f"{path}:1: {message}"
