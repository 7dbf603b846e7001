"""Benchmarks whose answers are programs: how they are found, tried and voted on.

    last Python block ── sandbox ── outputs on base and plus inputs ──┐
    canonical solution ── sandbox, in a run of its own ── outputs ────┴── compared here

Scores: `accuracy` (base and plus inputs are right), `accuracy_base`, where the data say which
inputs are base, and `accuracy_published`, where they carry the test that the published code runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
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
            times = allowed(self.times, [case.output.seconds for case in cases])
            arguments = [case.arguments for case in cases]
            entry_point = details["entry_point"]
            outputs = trials.outputs_of(self.run, program, entry_point, arguments, times)
            self._verdicts[key] = _judge(details, cases, outputs)
        return self._verdicts[key]

    def _cases(self, question: Question) -> Sequence[Case]:
        """Return the inputs of a question, with what the canonical solution returns for them.

        An output that does not equal itself, as an iterator does not, asks for nothing: its input
        counts for nobody.
        """
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
                case = Case(given[index], output, index < base)
                if _is_right(details, case, output, _shown(output)):
                    cases.append(case)
            if not cases:
                told = "nothing that the canonical solution returns equals itself"
                raise DataError(f"{self.name} {question.id}: {told}")
            self._solved[question.id] = cases
        return self._solved[question.id]


def _judge(
    details: Mapping[str, Any],
    cases: Sequence[Case],
    outputs: Iterable[trials.Output | None],
) -> Verdict:
    """Compare outputs one by one, up to the first wrong one, or to the last that votes.

    The base inputs come first.
    """
    voting = sum(case.is_base for case in cases) or _VOTED
    base = everything = True
    spelled: list[str] = []
    returned = False
    for index, (output, case) in enumerate(zip(outputs, cases, strict=False)):
        if everything and not _is_right(details, case, output, case.output.value()):
            everything = False
            base = not case.is_base
        if index < voting:
            spelled.append(oracles.output_key(details["entry_point"], [_shown(output)]))
            returned = returned or (output is not None and not output.error)
        if not everything and index + 1 >= voting:
            break
    vote = hashlib.sha256("\n".join(spelled).encode()).hexdigest() if returned else ""
    return Verdict(base, everything, vote)


def _is_right(
    details: Mapping[str, Any],
    case: Case,
    output: trials.Output | None,
    right: Any,
) -> bool:
    if output is None or output.error:
        return False
    arguments = [values.decode(part) for part in case.arguments]
    got = _shown(output)
    return oracles.is_right(details["entry_point"], got, right, arguments, details["atol"])


def _shown(output: trials.Output | None) -> Any:
    """Return what a call returned, or what stands for nothing or for an exception.

    Two programs that raise the same exception agree in a vote.
    """
    if output is None:
        return values.Other("nothing")
    if output.error:
        return values.Other(output.error)
    try:
        return output.value()
    except ValueError:
        return values.Other("nothing")
