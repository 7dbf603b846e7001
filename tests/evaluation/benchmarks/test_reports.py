"""Reports of candidates: what is refused in them, and long ones, which come in pieces."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from psynth_jax.evaluation.benchmarks import trials
from psynth_jax.evaluation.benchmarks.sandboxed import harness, values
from psynth_jax.evaluation.benchmarks.trials import Output, Times
from tests.evaluation.benchmarks.fake_sandbox import FakeOutcome, FakeSandbox

TIMES = Times(call=5.0, all=20.0)


class Told:
    """Runs nothing: reports, for each run, what comes next."""

    def __init__(self, *reports: str) -> None:
        self.reports = list(reports)
        self.asked: list[int] = []

    def __call__(self, program: str, files: Mapping[str, bytes], seconds: float) -> FakeOutcome:
        job = json.loads(files["psynth_job.json"])
        self.asked.append(len(job["cases"]))
        return FakeOutcome(0, self.reports.pop(0).replace("NONCE", job["nonce"]))


def line(index: int, value: str) -> str:
    return f'NONCE {index} {{"value": {value}, "seconds": 0.5}}\n'


def test_a_line_that_is_too_long_is_no_output() -> None:
    longest = '"' + "x" * (values.LONGEST - 2) + '"'
    run = Told(line(0, longest) + line(1, f"[{longest}, {longest}]") + line(2, "3"))
    first, second, third = trials.try_program(run, "", "f", [[]] * 3, TIMES)
    assert first is not None and first.value() == "x" * (values.LONGEST - 2)
    assert second is None
    assert third == Output('{"value": 3, "seconds": 0.5}', "", 0.5)


def test_values_are_made_when_they_are_asked_for() -> None:
    run = Told(line(0, '{"x": 1}') + line(1, "[" * 900 + "]" * 900))
    for output in trials.try_program(run, "", "f", [[]] * 2, TIMES):
        assert output is not None
        with pytest.raises(ValueError, match=r"no encoded value|too deep"):
            output.value()


def test_a_long_report_goes_on_in_another_run() -> None:
    filled = "x" * harness.MOST_TOLD + "\n"
    run = Told(filled + line(0, "1") + line(1, "2"), filled + line(0, "3"), line(0, "4"))
    found = trials.try_program(run, "", "f", [[]] * 4, TIMES)
    assert [output and output.value() for output in found] == [1, 2, 3, 4]
    assert run.asked == [4, 2, 1]


def test_nothing_is_asked_for_behind_a_call_that_was_late() -> None:
    filled = "x" * harness.MOST_TOLD + "\n"
    late = 'NONCE 1 {"error": "Late", "seconds": 5}\n'
    run = Told(filled + line(0, "1") + late)
    found = trials.try_program(run, "", "f", [[]] * 3, TIMES)
    assert [output and output.error for output in found] == ["", "Late", None]


def test_runs_are_made_when_they_are_asked_for() -> None:
    filled = "x" * harness.MOST_TOLD + "\n"
    run = Told(filled + line(0, "1"), line(0, "2"))
    found = trials.outputs_of(run, "", "f", [[]] * 2, TIMES)
    assert next(found) is not None
    assert run.asked == [2]


def test_outputs_of_more_than_a_sandbox_lets_out() -> None:
    run = FakeSandbox()
    cases = [[number] for number in range(40)]
    found = trials.try_program(run, "def f(n): return 'x' * 900_000\n", "f", cases, TIMES)
    assert [output and len(output.value()) for output in found] == [900_000] * 40
    assert run.runs == 2
