"""The control `wrong-branches`: every question with the branches of another one, and nothing to be right by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from psynth_jax.errors import DataError
from psynth_jax.evaluation.tasks import Question


def with_wrong_branches(questions: Sequence[Question]) -> list[Question]:
    """Give every question the branches of another one.

    They come from the next question, in the order given and from the start again after the last, that accepts no answer
    in common and has no branch in common with it.  Raises `DataError` for a question that finds none.
    """
    found = []
    for at, question in enumerate(questions):
        other = _other(questions, at)
        found.append(dataclasses.replace(question, branches=other.branches, workers=other.workers))
    return found


def _other(questions: Sequence[Question], at: int) -> Question:
    question = questions[at]
    for step in range(1, len(questions)):
        other = questions[(at + step) % len(questions)]
        shared = set(question.texts) & set(other.texts) - {""}  # a worker may have written nothing
        if not shared and not question.shares_an_answer(other):
            return other
    raise DataError(
        f"wrong-branches: no other question has other answers and other branches than {question.id!r}; "
        "give a file with more questions, or leave the method out"
    )
