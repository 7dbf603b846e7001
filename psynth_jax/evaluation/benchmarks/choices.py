"""Benchmarks whose answers are letters: how they are read, compared and voted on."""

from __future__ import annotations

from collections.abc import Mapping

from psynth_jax.evaluation.benchmarks import published
from psynth_jax.evaluation.benchmarks.benchmark import Benchmark, BenchmarkQuestion, details_of
from psynth_jax.evaluation.benchmarks.letters import LETTERS, final_letter
from psynth_jax.evaluation.benchmarks.wording import choice_prompts
from psynth_jax.evaluation.tasks import Question


class ChoiceBenchmark(Benchmark):
    """Questions with lettered options, one of which is right."""

    def vote_key(self, written: str, question: Question) -> str:
        """Return the letter."""
        return final_letter(written, details_of(question)["options"])

    def judged(self, written: str, question: Question) -> tuple[str, Mapping[str, float]]:
        """Return the letter, `accuracy`, and `accuracy_published`."""
        letter = self.vote_key(written, question)
        (gold,) = question.answers
        as_published = published.same_text(written, gold)
        scores = {"accuracy": float(letter == gold), "accuracy_published": float(as_published)}
        return letter, scores

    def asked(self, identifier: str, text: str, count: int, gold: str) -> BenchmarkQuestion:
        """Return the question whose text shows `count` options; `gold` is the right letter."""
        worker, query = choice_prompts(text, LETTERS[:count])
        return BenchmarkQuestion(
            id=identifier,
            task=self.name,
            query=query,
            branches=(),
            answers=(gold,),
            worker_prompt=worker,
            details={"options": count},
        )
