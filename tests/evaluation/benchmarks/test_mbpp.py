"""MBPP+: rows of both forms, prompts, and all solutions of the shared rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.mbpp import MBPPPlus
from psynth_jax.evaluation.benchmarks.trials import Times
from tests.evaluation.benchmarks.fake_sandbox import FakeSandbox
from tests.evaluation.benchmarks.rows_files import FORMS, written
from tests.evaluation.benchmarks.shared_rows import shared
from tests.evaluation.benchmarks.wrong_programs import WAYS, wrong
from tests.slow import exhaustive_but

FILE = "mbpp/MbppPlus.jsonl.gz"
CODE = "def rotate(items, by):\n    return items[by:] + items[:by]\n"
ASSERTIONS = [f"assert rotate((1, 2, 3), {by}) == {right}" for by, right in enumerate(((1, 2, 3), (2, 3, 1), (3, 1, 2)))]
RELEASE: dict[str, Any] = {
    "task_id": "Mbpp/900",
    "prompt": f'"""\nWrite a function to rotate a tuple.\n{ASSERTIONS[0]}\n"""\n',
    "entry_point": "rotate",
    "canonical_solution": CODE,
    "base_input": [[[1, 2, 3], 0], [[1, 2, 3], 1]],
    "plus_input": [[[], 0], [[5, 6], 1]],
    "atol": 0,
    "assertion": "\n" + "\n".join([*ASSERTIONS, "assert rotate((), 0) == ()"]),
}
TEST = """
inputs = [[(1, 2), 1], [(3,), 0]]
results = [(2, 1), (3,)]
for inp, exp in zip(inputs, results):
    assert rotate(*inp) == exp
"""
HUB = {
    "task_id": 900,
    "code": CODE,
    "prompt": "Write a function to rotate a tuple.",
    "test_list": ["assert set(rotate((1, 2), 1)) == set((2, 1))", *ASSERTIONS],
    "test_imports": [],
    "test": TEST,
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_the_release(tmp_path: Path, form: str) -> None:
    (question,) = MBPPPlus(written(tmp_path, form, [RELEASE])).questions()
    assert (question.id, question.answers) == ("Mbpp/900", (CODE,))
    three = {"t": [1, 2, 3]}
    assert question.details["base"] == [[three, 0], [three, 1]]
    assert question.details["plus"] == [[{"t": []}, 0], [{"t": [5, 6]}, 1]]
    problem = "Write a function to rotate a tuple.\n\nIt must pass these tests:\n" + "\n".join(ASSERTIONS)
    assert question.query.startswith(f"{problem}\n\nWrite one self-contained Python program")
    assert question.worker_prompt.endswith(f"\n\nThe problem:\n{problem}")


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_the_hub(tmp_path: Path, form: str) -> None:
    benchmark = MBPPPlus(written(tmp_path, form, [HUB]), run=FakeSandbox(), times=Times(1.0, 20.0))
    (question,) = benchmark.questions()
    assert (question.id, question.details["entry_point"], question.details["test"]) == ("900", "rotate", TEST)
    assert "\n".join(HUB["test_list"][:3]) in question.query and ASSERTIONS[2] not in question.query
    assert benchmark.judged(f"```python\n{CODE}```", question)[1] == {"accuracy": 1, "accuracy_published": 1}
    assert benchmark.judged(f"```py\n{CODE}```", question)[1] == {"accuracy": 1, "accuracy_published": 0}
    other = "def rotate(items, by): return items\n"
    assert benchmark.judged(f"```python\n{other}```", question)[1] == {"accuracy": 0, "accuracy_published": 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (RELEASE | {"assertion": None}, "the row lacks the field 'assertion'"),
        (RELEASE | {"assertion": "assert f("}, "the assertions are no Python: '(' was never closed"),
        (RELEASE | {"prompt": None}, "the row lacks the field 'prompt'"),
        (HUB | {"test_list": None}, "the row lacks the field 'test_list'"),
        (HUB | {"test_list": ["assert 1"]}, "'test_list' calls no function"),
        (HUB | {"code": None}, "the row lacks the field 'code'"),
        (HUB | {"test": None}, "the row lacks the field 'test' or 'base_input'"),
    ],
)
def test_errors(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = written(tmp_path, "rows.jsonl", [row])
    with pytest.raises(DataError) as caught:
        MBPPPlus(path).questions()
    assert str(caught.value).startswith(f"{path}:1: {message}")


def test_shared_rows() -> None:
    questions = MBPPPlus(shared(FILE)).questions()
    assert len(questions) == 378 and len({question.id for question in questions}) == 378
    by_id = {question.id: question for question in questions}
    # An infinite number, no further inputs at all, and tuples.
    assert any({"f": "inf"} in case or {"f": "-inf"} in case for case in by_id["Mbpp/404"].details["plus"])
    assert by_id["Mbpp/793"].details["plus"] == []
    assert by_id["Mbpp/2"].details["base"][0] == [{"t": [3, 4, 5, 6]}, {"t": [5, 7, 4, 10]}]


# Mbpp/599 adds up large ranges: its solution alone takes most of a minute.
@pytest.mark.parametrize("first", exhaustive_but(range(0, 378, 54), full=[324]))
def test_all_solutions_pass(first: int) -> None:
    benchmark = MBPPPlus(shared(FILE), run=FakeSandbox())
    for question in benchmark.questions()[first : first + 54]:
        scores = benchmark.judged(f"```python\n{question.details['solution']}```", question)[1]
        assert scores == {"accuracy": 1, "accuracy_base": 1}, question.id


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_wrong_programs_fail(way: str) -> None:
    benchmark = MBPPPlus(shared(FILE), run=FakeSandbox(), times=Times(1.0, 20.0))
    by_id = {question.id: question for question in benchmark.questions()}
    for name in ("Mbpp/2", "Mbpp/3", "Mbpp/14", "Mbpp/72"):
        details = by_id[name].details
        text = wrong(way, details["solution"], details["entry_point"])
        assert benchmark.judged(text, by_id[name])[1] == {"accuracy": 0, "accuracy_base": 0}, name
