"""Benchmarks whose answers are programs: how they are found, tried and voted on.

    last Python block ── sandbox ── outputs on base and plus inputs ──┐
    canonical solution ── sandbox, in a run of its own ── outputs ────┴── compared here

Scores: `accuracy` (base and plus inputs are right), `accuracy_base`, where the data say which
inputs are base, and `accuracy_published`, where they carry the test that the published code runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from psynth_jax.data.sources.rows import PlacedRow
from psynth_jax.errors import DataError, InputError
from psynth_jax.evaluation.benchmarks import oracles, trials
from psynth_jax.evaluation.benchmarks.benchmark import (
    Benchmark,
    BenchmarkQuestion,
    details_of,
    local_file,
)
from psynth_jax.evaluation.benchmarks.fences import final_program, published_program
from psynth_jax.evaluation.benchmarks.plus_rows import release_rows
from psynth_jax.evaluation.benchmarks.sandboxed import values
from psynth_jax.evaluation.benchmarks.solutions import Case, allowed, solved
from psynth_jax.evaluation.benchmarks.wording import code_prompts
from psynth_jax.evaluation.tasks import Question

_VOTED = 50  # inputs whose outputs make a vote, where the data do not say which ones are base


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a program is worth.

    base, everything: whether it is right on the base inputs, and on all.  vote: digest of what it
    returns for the base inputs; "" where it returns nothing.
    """

    base: bool
    everything: bool
    vote: str


_NOTHING = Verdict(base=False, everything=False, vote="")


class CodeBenchmark(Benchmark):
    """Functions to write.  Programs run in the sandbox; `run` is another way to run them."""

    def __init__(
        self,
        data: str | None = None,
        revision: str | None = None,
        run: trials.Run = trials.in_sandbox,
        times: trials.Times | None = None,
    ):
        """Name the data as for every benchmark.

        Args:
          data: a file; None: the data set on the hub.
          revision: of the data set on the hub.
          run: runs a program; see `trials`.
          times: seconds that a program has.

        Raises:
          InputError: as for every benchmark, and for times that are not positive.
        """
        super().__init__(data, revision)
        self.run = run
        self.times = times or trials.Times()
        if not 0 < self.times.call <= self.times.all:
            told = f"a call has {self.times.call} s of {self.times.all} s"
            raise InputError(f"{told}: it must be more than 0, and no more than all")
        self._solved: dict[str, Sequence[Case]] = {}
        self._verdicts: dict[tuple[str, str], Verdict] = {}

    def rows(self) -> list[PlacedRow]:
        """Read the rows; see `Benchmark`.  JSON lines may hold NaN and Infinity."""
        if self.data is not None and self.data.endswith((".jsonl", ".jsonl.gz")):
            return list(release_rows(local_file(self.data), self.data))
        return super().rows()

    def settings(self) -> Mapping[str, object]:
        """Return the settings of every benchmark, and the times."""
        return {**super().settings(), "seconds": [self.times.call, self.times.all]}

    def vote_key(self, written: str, question: Question) -> str:
        """Return a digest of what the program returns for the base inputs; "" for nothing."""
        program = final_program(written, details_of(question)["entry_point"])
        return self._verdict(program, question).vote if program else ""

    def judged(self, written: str, question: Question) -> tuple[str, Mapping[str, float]]:
        """Return the program, and its scores."""
        details = details_of(question)
        program = final_program(written, details["entry_point"])
        verdict = self._verdict(program, question) if program else _NOTHING
        scores = {"accuracy": float(verdict.everything)}
        if details["base"]:
            scores["accuracy_base"] = float(verdict.base)
        if "test" in details:
            scores["accuracy_published"] = float(self._passes_test(written, details["test"]))
        return program, scores

    def asked(self, identifier: str, problem: str, details: Mapping[str, Any]) -> BenchmarkQuestion:
        """Return the question about a problem; its answer is the canonical solution."""
        worker, query = code_prompts(problem)
        return BenchmarkQuestion(
            id=identifier,
            task=self.name,
            query=query,
            branches=(),
            answers=(details["solution"],),
            worker_prompt=worker,
            details=details,
        )

    def _passes_test(self, written: str, test: str) -> bool:
        program = published_program(written)
        return bool(program) and trials.run_test(self.run, f"{program}\n{test}")

    def _verdict(self, program: str, question: Question) -> Verdict:
        """Try a program, once: several methods and votes may ask for the same one."""
        key = (question.id, hashlib.sha256(program.encode("utf-8", "replace")).hexdigest())
        if key not in self._verdicts:
            details = details_of(question)
            cases = self._cases(question)
            times = allowed(self.times, [case.seconds for case in cases])
            arguments = [case.arguments for case in cases]
            outputs = trials.try_program(self.run, program, details["entry_point"], arguments, times)
            self._verdicts[key] = _judge(details, cases, outputs)
        return self._verdicts[key]

    def _cases(self, question: Question) -> Sequence[Case]:
        """Return the inputs of a question, with what the canonical solution returns for them."""
        if question.id not in self._solved:
            details = details_of(question)
            given = [*details["base"], *details["plus"]]
            found = solved(self.run, details["solution"], details["entry_point"], given, self.times)
            if not found:
                told = "the canonical solution returns nothing"
                raise DataError(f"{self.name} {question.id}: {told}")
            base = len(details["base"])
            cases = []
            for index, output in found.items():
                cases.append(Case(given[index], output.value, output.seconds, index < base))
            self._solved[question.id] = cases
        return self._solved[question.id]


def _judge(
    details: Mapping[str, Any],
    cases: Sequence[Case],
    outputs: Sequence[trials.Output | None],
) -> Verdict:
    entry_point, atol = details["entry_point"], details["atol"]
    base = everything = True
    for output, case in zip(outputs, cases, strict=True):
        right = False
        if output is not None and not output.error:
            arguments = [values.decode(part) for part in case.arguments]
            right = oracles.is_right(entry_point, output.value, case.right, arguments, atol)
        everything = everything and right
        base = base and (right or not case.is_base)
    voting = outputs[: sum(case.is_base for case in cases) or _VOTED]
    return Verdict(base, everything, _vote(entry_point, voting))


def _vote(entry_point: str, outputs: Sequence[trials.Output | None]) -> str:
    if not any(output is not None and not output.error for output in outputs):
        return ""
    # An exception is an output of its own kind, the same for all programs that raise it.
    return oracles.output_key(entry_point, [_shown(output) for output in outputs])


def _shown(output: trials.Output | None) -> Any:
    if output is None:
        return values.Other("nothing")
    return values.Other(output.error) if output.error else output.value
