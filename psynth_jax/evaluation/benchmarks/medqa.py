"""MedQA (USMLE, four options): 1,273 questions of medical examinations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from psynth_jax.errors import DataError, shown
from psynth_jax.evaluation.benchmarks import row_fields
from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion, HubData
from psynth_jax.evaluation.benchmarks.choices import ChoiceBenchmark
from psynth_jax.evaluation.benchmarks.letters import LETTERS
from psynth_jax.evaluation.benchmarks.wording import lettered


class MedQA(ChoiceBenchmark):
    """Rows with `question`, `options` and `answer_idx`, the right letter.

    options: an object with the letters as keys, or a list of objects with `key` and `value`.
    """

    name: ClassVar[str] = "medqa"  # type: ignore[misc]
    hub = HubData(
        "GBaker/MedQA-USMLE-4-options",
        "test",
        "0fb93dd23a7339b6dcd27e241cb9b5eca62d4d18",
    )

    def question(self, where: str, row: Mapping[str, Any], number: int) -> BenchmarkQuestion:
        """Return the question of a row; see `Benchmark`."""
        options = _options(where, row)
        gold = row_fields.text(where, row, "answer_idx").upper()
        if gold not in dict(options):
            letters = ", ".join(dict(options))
            raise DataError(f"{where}: 'answer_idx' must be one of {letters}, not {shown(gold)}")
        text = lettered(row_fields.text(where, row, "question"), options)
        identifier = row_fields.identifier(row, number, "realidx")
        return self.asked(identifier, text, len(options), gold)


def _options(where: str, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return letters and texts, in the order of the letters, which begin with A without a gap."""
    value = row.get("options")
    if isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        value = {str(entry.get("key")): entry.get("value") for entry in value}
    if not isinstance(value, Mapping):
        told = "the row lacks the field 'options', an object of letters and texts"
        raise DataError(f"{where}: {told}")
    found = {}
    for letter, option in value.items():
        # Tables of the hub have a column for every letter that any row has, empty in others.
        if option is not None and str(option).strip():
            found[str(letter).strip().upper()] = str(option).strip()
    expected = list(LETTERS[: len(found)])
    if sorted(found) != expected or len(found) < 2:
        letters = shown(list(found))
        raise DataError(f"{where}: 'options' must have the letters A, B, ..., not {letters}")
    return [(letter, found[letter]) for letter in expected]
