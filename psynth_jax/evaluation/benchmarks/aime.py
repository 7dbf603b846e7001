"""AIME 2024 and 2025: 30 competition problems a year; answers are whole numbers from 0 to 999."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from psynth_jax.errors import DataError, shown
from psynth_jax.evaluation.benchmarks import published, row_fields
from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion, HubData
from psynth_jax.evaluation.benchmarks.mathematics import MathBenchmark
from psynth_jax.evaluation.benchmarks.wording import number_prompts
from psynth_jax.evaluation.tasks import Question

_LARGEST = 999


class AIME(MathBenchmark):
    """Rows with `problem` and `answer`, a number or its text."""

    max_new_tokens: ClassVar[int] = 6000  # type: ignore[misc]

    def question(self, where: str, row: Mapping[str, Any], number: int) -> BenchmarkQuestion:
        """Return the question of a row; see `Benchmark`."""
        problem = row_fields.text(where, row, "problem", "question")
        gold = row_fields.text(where, row, "answer")
        # Its digits are counted first: Python refuses to read an integer of thousands of them.
        digits = gold.lstrip("0") or "0"
        if not gold.isdecimal() or len(digits) > len(str(_LARGEST)) or int(digits) > _LARGEST:
            wanted = f"a whole number from 0 to {_LARGEST}"
            raise DataError(f"{where}: 'answer' must be {wanted}, not {shown(gold)}")
        worker, query = number_prompts(problem)
        return BenchmarkQuestion(
            id=row_fields.identifier(row, number),
            task=self.name,
            query=query,
            branches=(),
            answers=(str(int(digits)),),
            worker_prompt=worker,
        )

    def is_right_as_published(self, written: str, question: Question) -> bool:
        """Return whether the published rule reads the right integer."""
        return published.same_integer(written, question.answers[0])


class AIME24(AIME):
    """AIME 2024, I and II."""

    name: ClassVar[str] = "aime24"  # type: ignore[misc]
    hub = HubData("HuggingFaceH4/aime_2024", "train", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a")


class AIME25(AIME):
    """AIME 2025, I and II."""

    name: ClassVar[str] = "aime25"  # type: ignore[misc]
    hub = HubData("yentinglin/aime_2025", "train", "6f71d77b0b89b9dabe07ab466c51df33f514df7f")
