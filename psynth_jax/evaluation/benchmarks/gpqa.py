"""GPQA Diamond: 198 questions of biology, chemistry and physics, with four options.

The authors ask that questions are not shown in plain text on the internet.  So this library has
none of them, and never reads their canary string.  The benchmark is private: a run's files have
digests in place of prompts.  They hold what models wrote, which may repeat a question.

    authors' CSV     Question, Correct Answer, Incorrect Answer 1 to 3     options are shuffled
    JSON lines       question, options, answer (a letter or an option)     they keep their letters
    JSON lines       question with its options inside, answer (a letter)   nothing is to be done
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from psynth_jax.errors import DataError, shown
from psynth_jax.evaluation.benchmarks import row_fields
from psynth_jax.evaluation.benchmarks.benchmark import BenchmarkQuestion, HubData
from psynth_jax.evaluation.benchmarks.choices import ChoiceBenchmark
from psynth_jax.evaluation.benchmarks.letters import LETTERS
from psynth_jax.evaluation.benchmarks.options import lettered_options
from psynth_jax.evaluation.benchmarks.wording import lettered

_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_ORDER = 0  # another number would be another order, and other questions
_OPTION = re.compile(r"^\s*[(\[]?([A-J])[)\].:]\s*\S", re.MULTILINE)


class GPQA(ChoiceBenchmark):
    """Rows in one of three forms; see the file.  On the hub a user's token opens it."""

    name: ClassVar[str] = "gpqa"  # type: ignore[misc]
    private: ClassVar[bool] = True
    hub = HubData("Idavidrein/gpqa", "train", config="gpqa_diamond")

    def question(self, where: str, row: Mapping[str, Any], number: int) -> BenchmarkQuestion:
        """Return the question of a row; see `Benchmark`."""
        identifier = row_fields.identifier(row, number, "Record ID")
        if "Correct Answer" in row:
            return self._of_authors(where, row, identifier)
        text = row_fields.text(where, row, "question", "Question")
        answer = row_fields.text(where, row, "answer", "Answer")
        if row.get("options") is not None:
            return self._of_options(where, row, identifier)
        letters = set(_OPTION.findall(text))
        count = len(letters)
        if count < 2 or letters != set(LETTERS[:count]):
            lacking = "the row lacks the field 'options'"
            raise DataError(f"{where}: 'question' has no options A, B, ... in it, and {lacking}")
        return self.asked(identifier, text, count, _letter(where, answer, count))

    def _of_authors(self, where: str, row: Mapping[str, Any], identifier: str) -> BenchmarkQuestion:
        text = row_fields.text(where, row, "Question")
        right = row_fields.text(where, row, "Correct Answer")
        options = [right, *(row_fields.text(where, row, name) for name in _WRONG)]
        order = _order(text, len(options))
        shuffled = [(LETTERS[place], options[index]) for place, index in enumerate(order)]
        gold = LETTERS[order.index(0)]
        return self.asked(identifier, lettered(text, shuffled), len(options), gold)

    def _of_options(self, where: str, row: Mapping[str, Any], identifier: str) -> BenchmarkQuestion:
        text = row_fields.text(where, row, "question", "Question")
        answer = row_fields.text(where, row, "answer", "Answer")
        options = lettered_options(where, row)
        equal = [letter for letter, option in options if option == answer]
        # One character is a letter, never an option: 2 may be the number of an option, or its text.
        is_option = len(equal) == 1 and len(answer) > 1
        gold = equal[0] if is_option else _letter(where, answer, len(options))
        return self.asked(identifier, lettered(text, options), len(options), gold)


def _order(text: str, count: int) -> Sequence[int]:
    """Return an order of options that depends on the question, on nothing else."""

    def drawn(index: int) -> bytes:
        return hashlib.sha256(f"{_ORDER}\0{index}\0{text}".encode()).digest()

    return sorted(range(count), key=drawn)


def _letter(where: str, answer: str, count: int) -> str:
    letter = answer.strip("() .").upper()
    if len(letter) != 1 or letter not in LETTERS[:count]:
        wanted = f"one of the letters A to {LETTERS[count - 1]}"
        raise DataError(f"{where}: 'answer' must be {wanted}, not {shown(answer)}")
    return letter
