r"""Answers that were written elsewhere: a file of JSON lines with `id` and `text`.

{"id": "0", "text": "... \\boxed{18}"}      id: the row's own, or its number from 0, as text
"""

from __future__ import annotations

from collections.abc import Sequence

from psynth_jax.data.sources.rows import read_file
from psynth_jax.errors import DataError, shown
from psynth_jax.evaluation.benchmarks.benchmark import local_file
from psynth_jax.evaluation.tasks import Question


def read_answers(path: str, asked: Sequence[Question], everything: Sequence[Question]) -> list[str]:
    """Return the texts of a file in the order of the questions that are asked.

    Args:
      path: of the file.
      asked: the questions that need an answer; there may be answers to others.
      everything: all questions of the data, whose ids are known.

    Raises:
      DataError: an id is unknown, is there twice, or is missing, or a field has a wrong type; with
        the line.
    """
    known: dict[str, str] = {}
    for question in everything:
        if question.id in known:
            raise DataError(f"several tasks of the data have a question {shown(question.id)}: score them one by one")
        known[question.id] = question.id
    for number, question in enumerate(everything):
        known.setdefault(str(number), question.id)  # a row's own id comes first
    texts: dict[str, str] = {}
    for where, row in read_file(local_file(path), shown=path):
        identifier, text = row.get("id"), row.get("text")
        if not isinstance(identifier, str):
            raise DataError(f"{where}: 'id' must be a text, not {shown(identifier)}")
        if not isinstance(text, str):
            raise DataError(f"{where}: 'text' must be a text, not {shown(text)}")
        if identifier not in known:
            raise DataError(f"{where}: no question has the id {shown(identifier)}")
        if known[identifier] in texts:
            raise DataError(f"{where}: the id {shown(identifier)} is there twice")
        texts[known[identifier]] = text
    missing = [question.id for question in asked if question.id not in texts]
    if missing:
        others = f" and to {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{path} has no answer to question {shown(missing[0])}{others}")
    return [texts[question.id] for question in asked]
