"""GSM8K: 1,319 word problems of grade school; the answer is the number behind `####`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from psynth_jax.errors import DataError, shown
from psynth_jax.evaluation.benchmarks import published, row_fields
from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion, HubData, details_of
from psynth_jax.evaluation.benchmarks.mathematics import MathBenchmark
from psynth_jax.evaluation.benchmarks.numbers import plain_number
from psynth_jax.evaluation.benchmarks.wording import number_prompts
from psynth_jax.evaluation.tasks import Question


class GSM8K(MathBenchmark):
    """Rows with `question` and `answer`, whose last part is `#### 72`."""

    name: ClassVar[str] = "gsm8k"  # type: ignore[misc]
    hub = HubData("openai/gsm8k", "test", "e53f048856ff4f594e959d75785d2c2d37b678ee", config="main")

    def question(self, where: str, row: Mapping[str, Any], number: int) -> BenchmarkQuestion:
        """Return the question of a row; see `Benchmark`."""
        problem = row_fields.text(where, row, "question")
        solution = row_fields.text(where, row, "answer")
        _, mark, behind = solution.rpartition("####")
        gold = behind.strip().replace(",", "")
        if not mark or plain_number(gold) is None:
            ending = shown(solution[-40:])
            raise DataError(f"{where}: 'answer' must end with '#### ' and a number, not {ending}")
        worker, query = number_prompts(problem)
        return BenchmarkQuestion(
            id=row_fields.identifier(row, number),
            task=self.name,
            query=query,
            branches=(),
            answers=(gold,),
            worker_prompt=worker,
            details={"published": published.published_gold(solution)},
        )

    def is_right_as_published(self, written: str, question: Question) -> bool:
        """Return whether the published rule reads the same text in answer and solution."""
        return published.same_text(written, details_of(question)["published"])
