"""Benchmarks whose answers are numbers: how they are read, compared and voted on."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

from psynth_jax.evaluation.benchmarks import verified
from psynth_jax.evaluation.benchmarks.benchmark import Benchmark, BenchmarkQuestion
from psynth_jax.evaluation.benchmarks.numbers import final_number
from psynth_jax.evaluation.tasks import Question


class MathBenchmark(Benchmark):
    """Questions whose answer is a number: the last box counts, else the last number."""

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """Return all questions; see `Benchmark`.  Raises `InputError` without math-verify."""
        verified.require()
        return super().questions()

    def extract(self, written: str) -> str:
        """Return the answer as it is written; "" for none."""
        return final_number(written)

    def vote_key(self, written: str, question: Question) -> str:
        """Return what answers of one value share, however they are written."""
        return verified.value_key(self.extract(written))

    def judged(self, written: str, question: Question) -> tuple[str, Mapping[str, float]]:
        """Return the answer, `accuracy` by value, and `accuracy_published`."""
        answer = self.extract(written)
        right = any(verified.equal(answer, gold) for gold in question.answers)
        published = self.is_right_as_published(written, question)
        return answer, {"accuracy": float(right), "accuracy_published": float(published)}

    @abc.abstractmethod
    def is_right_as_published(self, written: str, question: Question) -> bool:
        """Return whether the published rule calls an answer right."""
