"""Programs are tried, compared and voted on: right ones pass, and those that cheat do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psynth_jax.errors import DataError, InputError
from psynth_jax.evaluation.benchmarks import trials
from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion
from psynth_jax.evaluation.benchmarks.humaneval import HumanEvalPlus
from psynth_jax.evaluation.benchmarks.trials import Times
from tests.evaluation.benchmarks.fake_sandbox import FakeSandbox
from tests.evaluation.benchmarks.rows_files import written
from tests.evaluation.benchmarks.wrong_programs import WAYS, wrong

PROMPT = 'def double(values):\n    """Return a list with all values doubled."""\n'
ROW: dict[str, Any] = {
    "task_id": "HumanEval/0",
    "prompt": PROMPT,
    "entry_point": "double",
    "canonical_solution": "    return [2 * value for value in values]\n",
    "base_input": [[[1, 2]], [[]]],
    "plus_input": [[[0.5]], [["a"]], [[None]]][:2],
    "atol": 0,
}
RIGHT = {"accuracy": 1.0, "accuracy_base": 1.0}
WRONG = {"accuracy": 0.0, "accuracy_base": 0.0}
QUICK = Times(call=1.0, all=60.0)  # for programs that never end
SLOW = Times(call=30.0, all=120.0)  # for those that must end, on a busy machine, too


def made(folder: Path, times: Times = QUICK, **changes: Any) -> tuple[HumanEvalPlus, BenchmarkQuestion, FakeSandbox]:
    run = FakeSandbox()
    benchmark = HumanEvalPlus(written(folder, "rows.jsonl", [ROW | changes]), run=run, times=times)
    return benchmark, benchmark.questions()[0], run


def fenced(program: str) -> str:
    return f"Here:\n\n```python\n{program}```"


def test_right_programs(tmp_path: Path) -> None:
    benchmark, question, run = made(tmp_path)
    programs = [
        "def double(values): return [value + value for value in values]\n",
        "from typing import List\n"
        "def double(values: List) -> List:\n    print('hello')\n    return list(2 * v for v in values)\n",
        # What happens to the arguments does not matter.
        "def double(values):\n    found = [2 * v for v in values]\n"
        "    values.clear()\n    values.append(7)\n    return found\n",
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 2\n"
        "def double(values): return [A().x * v for v in values]\n",
        "if __name__ == '__main__':\n    raise ValueError\ndef double(values): return [2 * v for v in values]\n",
    ]
    for program in programs:
        assert benchmark.judged(fenced(program), question) == (program, RIGHT)
    # The canonical solution runs once, and each program once, however often it is asked for.
    assert benchmark.judged(fenced(programs[0]), question)[1] == RIGHT
    assert run.runs == 1 + len(programs)


@pytest.mark.parametrize("way", WAYS)
def test_wrong_programs(tmp_path: Path, way: str) -> None:
    benchmark, question, _ = made(tmp_path)
    solution = PROMPT + ROW["canonical_solution"]
    assert benchmark.judged(wrong(way, solution, "double"), question)[1] == WRONG


def test_plus_inputs_count(tmp_path: Path) -> None:
    benchmark, question, _ = made(tmp_path)
    program = "def double(values): return [int(2 * v) for v in values]\n"
    assert benchmark.judged(fenced(program), question)[1] == {"accuracy": 0.0, "accuracy_base": 1.0}
    late = "def double(values):\n    while values == ['a']: pass\n    return [2 * v for v in values]\n"
    assert benchmark.judged(fenced(late), question)[1] == {"accuracy": 0.0, "accuracy_base": 1.0}


def test_no_program(tmp_path: Path) -> None:
    benchmark, question, run = made(tmp_path)
    assert benchmark.judged("I cannot.", question) == ("", WRONG)
    assert benchmark.vote_key("I cannot.", question) == "" and run.runs == 0


def test_votes(tmp_path: Path) -> None:
    benchmark, question, _ = made(tmp_path)
    texts = [
        fenced("def double(values): return [2 * v for v in values]\n"),
        fenced("def double(values):\n    # base inputs only are asked for\n    return [2.0 * v for v in values]\n"),
        fenced("def double(values): return values\n"),
        fenced("def double(values): raise ValueError\n"),
        fenced("def double(:\n"),
    ]
    keys = [benchmark.vote_key(text, question) for text in texts]
    assert keys[0] == keys[1] != keys[2] and keys[3:] == ["", ""] and len(keys[0]) == 64


def test_an_input_whose_value_is_too_large_counts_for_nobody(tmp_path: Path) -> None:
    body = "    return values if len(values) < 3 else [0] * 3_000_000\n"
    inputs = {"base_input": [[[1]], [[1, 2, 3]]], "plus_input": [[[2]]], "canonical_solution": body}
    benchmark, question, _ = made(tmp_path, SLOW, **inputs)
    program = "def double(values): return values if len(values) < 3 else None\n"
    assert benchmark.judged(fenced(program), question)[1] == RIGHT


def test_an_input_that_ends_the_solution_counts_for_nobody(tmp_path: Path) -> None:
    body = "    import os\n    return os._exit(1) if values == [5] else values\n"
    inputs = {"base_input": [[[1]], [[5]]], "plus_input": [[[2]], [[5]], [[3]]], "canonical_solution": body}
    benchmark, question, run = made(tmp_path, **inputs)
    assert benchmark.judged(fenced("def double(values): return values\n"), question)[1] == RIGHT
    assert run.runs == 4
    assert benchmark.judged(fenced("def double(values): return values[:1] if values != [3] else 0\n"), question)[1] == {
        "accuracy": 0.0,
        "accuracy_base": 1.0,
    }


def test_a_broken_solution(tmp_path: Path) -> None:
    benchmark, question, _ = made(tmp_path, canonical_solution="    raise ValueError\n")
    with pytest.raises(DataError, match=r"^humaneval_plus HumanEval/0: the canonical solution returns nothing$"):
        benchmark.judged(fenced("def double(values): return 1\n"), question)


@pytest.mark.parametrize("value", ["range(3)", "(x for x in values)", "__import__('fractions').Fraction(1, 3)"])
def test_a_solution_whose_outputs_equal_nothing(tmp_path: Path, value: str) -> None:
    benchmark, question, _ = made(tmp_path, canonical_solution=f"    return {value}\n")
    told = "humaneval_plus HumanEval/0: nothing that the canonical solution returns equals itself"
    with pytest.raises(DataError) as caught:
        benchmark.judged(fenced(f"def double(values): return {value}\n"), question)
    assert str(caught.value) == told


def test_an_output_that_equals_nothing_counts_for_nobody(tmp_path: Path) -> None:
    body = "    return values or iter(values)\n"
    benchmark, question, _ = made(tmp_path, canonical_solution=body)
    program = "def double(values): return values or None\n"
    assert benchmark.judged(fenced(program), question)[1] == RIGHT


def test_nothing_is_tried_behind_a_wrong_output(tmp_path: Path) -> None:
    long = "    return 'x' * 900_000\n"
    inputs = {"base_input": [[[0]]], "plus_input": [[[number]] for number in range(40)]}
    benchmark, question, run = made(tmp_path, canonical_solution=long, **inputs)
    right = "def double(values): return 'x' * 900_000\n"
    assert benchmark.judged(fenced(right), question)[1] == RIGHT
    assert run.runs == 4
    wrong_at_last = "def double(values): return 'x' * (900_000 - (values == [5]))\n"
    told = {"accuracy": 0.0, "accuracy_base": 1.0}
    assert benchmark.judged(fenced(wrong_at_last), question)[1] == told
    assert run.runs == 5


def test_a_slow_solution_gives_candidates_time(tmp_path: Path) -> None:
    slow = "    import time\n    time.sleep(0.2)\n    return [2 * v for v in values]\n"
    benchmark, question, _ = made(tmp_path, canonical_solution=slow)
    benchmark.times = Times(call=0.1, all=20.0)
    program = "import time\ndef double(values):\n    time.sleep(0.3)\n    return [2 * v for v in values]\n"
    assert benchmark.judged(fenced(program), question)[1] == RIGHT


def test_settings_and_times(tmp_path: Path) -> None:
    assert made(tmp_path)[0].settings() == {"benchmark": "humaneval_plus", "revision": None, "seconds": [1.0, 60.0]}
    with pytest.raises(InputError, match=r"^a call has 5.0 s of 1.0 s"):
        HumanEvalPlus("rows.jsonl", times=Times(5.0, 1.0))


@pytest.mark.parametrize(
    "stdout",
    [
        "",
        "{n} 0 {{}}",
        "{n} 0 [1]",
        '{n} 0 {{"value": 1}}',
        '{n} 0 {{"value": {{"x": 1}}, "seconds": 0}}',
        '{n} 0 {{"value": 1, "seconds": 0}}\n{n} 0 {{"value": 1, "seconds": 0}}',
        '{n} 0 {{"value": 1, "seconds": 0}}\n{n} 5 {{"value": 1, "seconds": 0}}',
        '{n} x {{"value": 1, "seconds": 0}}',
        'x{n} 0 {{"value": 1, "seconds": 0}}',
        "{n} 0 " + "[" * 100_000,
    ],
)
def test_damaged_reports(stdout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials.secrets, "token_hex", lambda size: "n" * size)
    text = stdout.format(n="n" * 16)

    class Told:
        exit_code = 0
        stdout = text

    (output,) = trials.try_program(lambda *_: Told(), "", "f", [[]], QUICK)
    if output is not None:
        with pytest.raises(ValueError, match="no encoded value"):
            output.value()
