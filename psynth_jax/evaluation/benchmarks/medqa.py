"""MedQA (USMLE, four options): 1,273 questions of medical examinations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from psynth_jax.errors import DataError, shown
from psynth_jax.evaluation.benchmarks import row_fields
from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion, HubData
from psynth_jax.evaluation.benchmarks.choices import ChoiceBenchmark
from psynth_jax.evaluation.benchmarks.options import lettered_options
from psynth_jax.evaluation.benchmarks.wording import lettered


class MedQA(ChoiceBenchmark):
    """Rows with `question`, `options` and `answer_idx`, the right letter.

    options: an object with the letters as keys, or another form of `options.lettered_options`.
    """

    name: ClassVar[str] = "medqa"  # type: ignore[misc]
    hub = HubData(
        "GBaker/MedQA-USMLE-4-options",
        "test",
        "0fb93dd23a7339b6dcd27e241cb9b5eca62d4d18",
    )

    def question(self, where: str, row: Mapping[str, Any], number: int) -> BenchmarkQuestion:
        """Return the question of a row; see `Benchmark`."""
        options = lettered_options(where, row)
        gold = row_fields.text(where, row, "answer_idx").upper()
        if gold not in dict(options):
            letters = ", ".join(dict(options))
            raise DataError(f"{where}: 'answer_idx' must be one of {letters}, not {shown(gold)}")
        text = lettered(row_fields.text(where, row, "question"), options)
        identifier = row_fields.identifier(row, number, "realidx")
        return self.asked(identifier, text, len(options), gold)
