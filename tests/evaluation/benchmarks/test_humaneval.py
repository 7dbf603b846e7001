"""HumanEval+: rows of both forms, prompts, and all solutions of the shared rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.humaneval import HumanEvalPlus
from psynth_jax.evaluation.benchmarks.trials import Times
from tests.evaluation.benchmarks.fake_sandbox import FakeSandbox
from tests.evaluation.benchmarks.rows_files import FORMS, written
from tests.evaluation.benchmarks.shared_rows import shared
from tests.evaluation.benchmarks.wrong_programs import WAYS, wrong
from tests.slow import exhaustive_but

FILE = "humaneval/HumanEvalPlus_0-81.jsonl.gz"
PROMPT = "def add(a, b):\n"
RELEASE: dict[str, Any] = {
    "task_id": "HumanEval/53",
    "prompt": PROMPT,
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "base_input": [[1, 2]],
    "plus_input": [[3, 4], [0.5, 1e9]],
    "atol": 1e-6,
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
TEST = """
def check(candidate):
    inputs = [[1, 2], [(3,), (4,)]]
    results = [3, (3, 4)]
    for inp, exp in zip(inputs, results):
        assert candidate(*inp) == exp
"""
HUB = {name: RELEASE[name] for name in ("task_id", "prompt", "entry_point", "canonical_solution")} | {"test": TEST}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_the_release(tmp_path: Path, form: str) -> None:
    (question,) = HumanEvalPlus(written(tmp_path, form, [RELEASE])).questions()
    assert (question.id, question.answers) == ("HumanEval/53", (PROMPT + "    return a + b\n",))
    assert question.details == {
        "entry_point": "add",
        "solution": PROMPT + "    return a + b\n",
        "base": [[1, 2]],
        "plus": [[3, 4], [0.5, 1e9]],
        "atol": 1e-6,
    }
    assert question.query.startswith("Complete this function:\n\ndef add(a, b):\n\nWrite one self-contained")
    assert question.worker_prompt.endswith("\n\nThe problem:\nComplete this function:\n\ndef add(a, b):")


def test_infinite_inputs(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", [RELEASE | {"plus_input": [[float("inf"), 1]]}])
    assert "Infinity" in Path(path).read_text()
    (question,) = HumanEvalPlus(path).questions()
    assert question.details["plus"] == [[{"f": "inf"}, 1]]


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_the_hub(tmp_path: Path, form: str) -> None:
    benchmark = HumanEvalPlus(written(tmp_path, form, [HUB]), run=FakeSandbox(), times=Times(1.0, 20.0))
    (question,) = benchmark.questions()
    assert question.details["plus"] == [[1, 2], [{"t": [3]}, {"t": [4]}]] and question.details["base"] == []
    assert question.details["test"] == f"{TEST.replace('candidate', 'add')}\ncheck(add)\n"
    told = {
        "def add(a, b): return a + b\n": (1, 1),
        "def add(a, b): return 3\n": (0, 0),
        "def add(a, b): raise SystemExit\n": (0, 0),
        "import os\nos._exit(0)\n": (0, 0),
        # A value that calls itself equal deceives the published test.
        "class Same:\n    def __eq__(self, other): return True\ndef add(a, b): return Same()\n": (0, 1),
    }
    for program, (right, published) in told.items():
        scores = benchmark.judged(f"```python\n{program}```", question)[1]
        assert scores == {"accuracy": right, "accuracy_published": published}
    texts = ["```python\ndef add(a, b): return a + b\n```", "```python\ndef add(*x): return x[0] + x[1]\n```"]
    assert len({benchmark.vote_key(text, question) for text in texts}) == 1


DEEP: list[Any] = []
for _ in range(70):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "the row lacks the field 'prompt'"),
        ({"entry_point": None}, "the row lacks the field 'entry_point'"),
        ({"canonical_solution": None}, "the row lacks the field 'canonical_solution'"),
        ({"base_input": None}, "the row lacks the field 'base_input'"),
        ({"plus_input": None}, "the row lacks the field 'plus_input'"),
        ({"plus_input": [1]}, "'plus_input' must hold lists of arguments, not 1"),
        ({"atol": -1}, "'atol' must be a number from 0, not -1"),
        ({"atol": "x"}, "'atol' must be a number from 0, not 'x'"),
        ({"atol": float("nan")}, "'atol' must be a number from 0, not nan"),
        ({"base_input": [[1], [DEEP]]}, "input 1 is too deep or has too many values"),
    ],
)
def test_errors(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path, "rows.jsonl", [RELEASE | change])
    with pytest.raises(DataError) as caught:
        HumanEvalPlus(path).questions()
    assert str(caught.value) == f"{path}:1: {message}"


def test_no_tests_at_all(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", [{**HUB, "test": None}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: the row lacks the field 'test' or 'base_input'$"):
        HumanEvalPlus(path).questions()


def test_damaged_lines(tmp_path: Path) -> None:
    for text, message in (("{", "not JSON"), ("[1]", "a row is a JSON object, not list")):
        (tmp_path / "rows.jsonl").write_text(f"\n{text}\n")
        with pytest.raises(DataError, match=rf"rows.jsonl:2: {message}"):
            HumanEvalPlus(str(tmp_path / "rows.jsonl")).questions()


def test_shared_rows() -> None:
    questions = HumanEvalPlus(shared(FILE)).questions()
    assert [question.id for question in questions] == [f"HumanEval/{number}" for number in range(82)]


@pytest.mark.parametrize("first", exhaustive_but([0, 41], full=[41]))
def test_all_solutions_pass(first: int) -> None:
    benchmark = HumanEvalPlus(shared(FILE), run=FakeSandbox())
    for question in benchmark.questions()[first : first + 41]:
        scores = benchmark.judged(f"```python\n{question.details['solution']}```", question)[1]
        assert scores == {"accuracy": 1, "accuracy_base": 1}, question.id


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_wrong_programs_fail(way: str) -> None:
    benchmark = HumanEvalPlus(shared(FILE), run=FakeSandbox(), times=Times(1.0, 20.0))
    for number in (1, 34, 53):
        question = benchmark.questions()[number]
        details = question.details
        text = wrong(way, details["solution"], details["entry_point"])
        assert benchmark.judged(text, question)[1] == {"accuracy": 0, "accuracy_base": 0}, question.id
