"""MedQA: rows of every form, prompts, both rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.letters import final_letter
from psynth_jax.evaluation.benchmarks.medqa import MedQA
from tests.evaluation.benchmarks.rows_files import FORMS, written
from tests.evaluation.benchmarks.shared_rows import shared

OPTIONS = {"A": "one", "B": "two", "C": "three", "D": "four"}
ROWS: list[dict[str, Any]] = [
    {"id": 7, "question": "Which?", "options": OPTIONS, "answer_idx": "C", "answer": "three"},
    {"question": "Which two?", "options": {"B": "b", "A": "a", "E": None}, "answer_idx": "a"},
    {
        "question": "Q",
        "options": [{"key": "A", "value": "x"}, {"key": "B", "value": "y"}],
        "answer_idx": "B",
    },
]


@pytest.mark.parametrize("form", FORMS)
def test_rows(tmp_path: Path, form: str) -> None:
    questions = MedQA(written(tmp_path, form, ROWS)).questions()
    assert [(question.id, question.answers) for question in questions] == [
        ("7", ("C",)),
        ("1", ("A",)),
        ("2", ("B",)),
    ]
    assert [question.details["options"] for question in questions] == [4, 2, 2]
    shown = "Which?\n\n(A) one\n(B) two\n(C) three\n(D) four"
    ending = "End with the letter of the right option (A, B, C or D), and nothing else, in"
    ending += r" \boxed{}."
    assert questions[0].query == f"{shown}\n\n{ending}"
    worker = f"Work through the problem step by step. {ending}\n\nQuestion:\n{shown}"
    assert questions[0].worker_prompt == worker
    assert "(A or B)" in questions[1].query


def test_both_rules(tmp_path: Path) -> None:
    benchmark = MedQA(written(tmp_path, "rows.jsonl", ROWS))
    question = benchmark.questions()[0]
    told = {
        r"\boxed{C}": (1, 1),
        r"\boxed{\text{C}}": (1, 0),
        "The answer is C.": (1, 0),
        r"\boxed{(C)}": (1, 0),
        r"\boxed{B}": (0, 0),
    }
    for text, (right, published) in told.items():
        assert benchmark.judged(text, question)[1] == {
            "accuracy": right,
            "accuracy_published": published,
        }
    assert benchmark.judged(r"\boxed{C}", benchmark.questions()[1])[0] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "the row lacks the field 'question'"),
        ({"answer_idx": None}, "the row lacks the field 'answer_idx'"),
        ({"answer_idx": "E"}, "'answer_idx' must be one of A, B, C, D, not 'E'"),
        (
            {"options": None},
            "the row lacks the field 'options', an object of letters and texts, or a list",
        ),
        ({"options": ["x", ""]}, "option 'B' must be a number or a text that is not empty, not ''"),
        (
            {"options": {"A": "x", "C": "y"}},
            "'options' must have the letters A, B, ..., not ['A', 'C']",
        ),
        (
            {"options": [{"key": ["B"], "value": "x"}, {"key": "A", "value": "y"}]},
            "'options' must have the letters A, B, ..., not ['A', \"['B']\"]",
        ),
        ({"options": {"A": "x"}}, "'options' must have the letters A, B, ..., not ['A']"),
    ],
)
def test_errors(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path, "rows.jsonl", [ROWS[0] | change])
    with pytest.raises(DataError) as caught:
        MedQA(path).questions()
    assert str(caught.value) == f"{path}:1: {message}"


def test_shared_rows() -> None:
    questions = MedQA(shared("medqa/usmle_4opt_test.jsonl.gz")).questions()
    assert len(questions) == 1273
    counts = [sum(question.answers == (letter,) for question in questions) for letter in "ABCD"]
    assert sum(counts) == 1273 and min(counts) > 200


@pytest.mark.parametrize("form", ["{}", "The answer is {}.", "{} is correct.", r"\boxed{{{}}}"])
def test_no_option_of_the_shared_rows_is_taken_for_a_letter(form: str) -> None:
    options = set()
    for question in MedQA(shared("medqa/usmle_4opt_test.jsonl.gz")).questions():
        shown, _, _ = question.query.rpartition("\n\n")
        lines = shown.splitlines()[-question.details["options"] :]
        options.update(line[len("(A) ") :] for line in lines)
    assert len(options) > 4000
    read = {option for option in options if final_letter(form.format(option))}
    # Questions about a table or a picture have these options.
    assert read == set("ABCD")
