"""GSM8K: rows of every form, gold answers, prompts, both rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.gsm8k import GSM8K
from tests.evaluation.benchmarks.rows_files import FORMS, written
from tests.evaluation.benchmarks.shared_rows import shared

ROWS = [
    {"question": "What is 9 + 9?", "answer": "9 + 9 = <<9+9=18>>18\n#### 18"},
    {"question": " A house? ", "answer": "So\n#### 1,234,000"},
    {"question": "Below 0?", "answer": "#### -5"},
]


@pytest.mark.parametrize("form", FORMS)
def test_rows(tmp_path: Path, form: str) -> None:
    questions = GSM8K(written(tmp_path, form, ROWS)).questions()
    assert [question.id for question in questions] == ["0", "1", "2"]
    assert [question.answers for question in questions] == [("18",), ("1234000",), ("-5",)]
    assert [dict(question.details) for question in questions] == [{"published": gold} for gold in ("18", "1", "-5")]
    assert {question.task for question in questions} == {"gsm8k"} and questions[0].branches == ()


def test_prompts(tmp_path: Path) -> None:
    question = GSM8K(written(tmp_path, "rows.jsonl", ROWS)).questions()[1]
    ending = r"End with the final answer, one number without a unit, in \boxed{}."
    assert question.query == f"A house?\n\n{ending}"
    assert question.worker_prompt == f"Work through the problem step by step. {ending}\n\nProblem:\nA house?"


def test_both_rules(tmp_path: Path) -> None:
    benchmark = GSM8K(written(tmp_path, "rows.jsonl", ROWS))
    small, large, _ = benchmark.questions()
    told = {
        r"\boxed{18}": (1, 1),
        r"\boxed{18.0}": (1, 0),
        "18": (1, 1),
        r"\boxed{18 eggs}": (1, 1),
        r"\boxed{\frac{36}{2}}": (1, 0),
        r"\boxed{\frac{18}{2}}": (0, 1),
        r"\boxed{-18}": (0, 0),
        "": (0, 0),
    }
    for text, (right, published) in told.items():
        assert benchmark.judged(text, small)[1] == {"accuracy": right, "accuracy_published": published}
    # The published rule takes the solution 1,234,000 for 1, and an answer with commas as well.
    assert benchmark.judged(r"\boxed{1,234,000}", large)[1] == {"accuracy": 1, "accuracy_published": 1}
    assert benchmark.judged(r"\boxed{1234000}", large)[1] == {"accuracy": 1, "accuracy_published": 0}
    assert benchmark.score("18", small) == {"accuracy": 1, "accuracy_published": 1}


def test_votes(tmp_path: Path) -> None:
    benchmark = GSM8K(written(tmp_path, "rows.jsonl", ROWS))
    question = benchmark.questions()[0]
    texts = [r"\boxed{1,000}", "so 1000.0", r"\boxed{10^3}", r"\boxed{\$1000}"]
    assert {benchmark.vote_key(text, question) for text in texts} == {"1000"}
    assert benchmark.vote_key("none", question) == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "#### 1"}, "2: the row lacks the field 'question'"),
        ({"question": "?"}, "2: the row lacks the field 'answer'"),
        ({"question": " ", "answer": "#### 1"}, "2: 'question' must be a text that is not empty, not ' '"),
        ({"question": "?", "answer": "18"}, "2: 'answer' must end with '#### ' and a number, not '18'"),
        ({"question": "?", "answer": "#### x"}, "2: 'answer' must end with '#### ' and a number, not '#### x'"),
        ({"question": "?", "answer": ["#### 1"]}, "2: 'answer' must be a text that is not empty, not ['#### 1']"),
        ({"question": "?", "answer": "#### 1", "id": "0"}, "2: the id '0' is there twice"),
    ],
)
def test_errors(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = written(tmp_path, "rows.jsonl", [ROWS[0], row])
    with pytest.raises(DataError) as caught:
        GSM8K(path).questions()
    assert str(caught.value) == f"{path}:{message}"


def test_files_that_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty.jsonl holds no row$"):
        GSM8K(str(tmp_path / "empty.jsonl")).questions()
    for missing in (str(tmp_path / "none.jsonl"), "owner/name", str(tmp_path)):
        with pytest.raises(DataError, match=r"^there is no "):
            GSM8K(missing).questions()


@pytest.mark.parametrize(("file", "rows"), [("gsm8k/test_first660.jsonl", 660), ("gsm8k/train.jsonl.gz", 7473)])
def test_shared_rows(file: str, rows: int) -> None:
    benchmark = GSM8K(shared(file))
    questions = benchmark.questions()
    assert len(questions) == rows
    for question in questions[:100]:
        (gold,) = question.answers
        assert benchmark.judged(rf"\boxed{{{gold}}}", question)[1]["accuracy"] == 1
