"""Benchmarks whose answers are programs: how they are found, tried and voted on.

    last Python block ── sandbox ── outputs on base and plus inputs ──┐
    canonical solution ── sandbox, in a run of its own ── outputs ────┴── compared here

Scores: `accuracy` (base and plus inputs are right), `accuracy_base`, where the data say which
inputs are base, and `accuracy_published`, where they carry the test that the published code runs.
"""

from __future__ import annotations

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
        self._tried: dict[tuple[str, str], Sequence[trials.Output | None]] = {}

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
        details = details_of(question)
        program = final_program(written, details["entry_point"])
        if not program:
            return ""
        cases = self._cases(question)
        base = sum(case.is_base for case in cases) or _VOTED
        outputs = self._outputs(program, question)[:base]
        if not any(output is not None and not output.error for output in outputs):
            return ""
        # An exception is an output of its own kind, the same for all programs that raise it.
        told = [_shown(output) for output in outputs]
        return oracles.output_key(details["entry_point"], told)

    def judged(self, written: str, question: Question) -> tuple[str, Mapping[str, float]]:
        """Return the program, and its scores."""
        details = details_of(question)
        program = final_program(written, details["entry_point"])
        base, everything = self._passed(program, question)
        scores = {"accuracy": float(everything)}
        if details["base"]:
            scores["accuracy_base"] = float(base)
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

    def _passed(self, program: str, question: Question) -> tuple[bool, bool]:
        """Return whether a program is right on the base inputs, and on all of them."""
        if not program:
            return False, False
        details = details_of(question)
        entry_point, atol = details["entry_point"], details["atol"]
        base = everything = True
        outputs = self._outputs(program, question)
        for output, case in zip(outputs, self._cases(question), strict=True):
            right = False
            if output is not None and not output.error:
                arguments = [values.decode(part) for part in case.arguments]
                right = oracles.is_right(entry_point, output.value, case.right, arguments, atol)
            everything = everything and right
            base = base and (right or not case.is_base)
        return base, everything

    def _passes_test(self, written: str, test: str) -> bool:
        program = published_program(written)
        return bool(program) and trials.run_test(self.run, f"{program}\n{test}")

    def _outputs(self, program: str, question: Question) -> Sequence[trials.Output | None]:
        """Return the outputs of a program; methods and votes ask for the same ones."""
        if not program:
            return []
        key = (question.id, hashlib.sha256(program.encode("utf-8", "replace")).hexdigest())
        if key not in self._tried:
            cases = self._cases(question)
            arguments = [case.arguments for case in cases]
            times = allowed(self.times, [case.seconds for case in cases])
            entry_point = details_of(question)["entry_point"]
            self._tried[key] = trials.try_program(self.run, program, entry_point, arguments, times)
        return self._tried[key]

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


def _shown(output: trials.Output | None) -> Any:
    if output is None:
        return values.Other("nothing")
    return values.Other(output.error) if output.error else output.value
