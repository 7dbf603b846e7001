"""Answers that were written elsewhere, scored as the method `answers`, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psynth_jax.errors import InputError
from psynth_jax.evaluation.benchmarks.given import read_answers
from psynth_jax.evaluation.lines import alone
from psynth_jax.evaluation.plan import Plan
from psynth_jax.evaluation.rows import RowFile
from psynth_jax.evaluation.run import WITHOUT_MODEL, OnRow, row_of, score_names, summary_of
from psynth_jax.evaluation.tasks import questions_digest

ANSWERS = "answers"


def score_given(plan: Plan, path: str, into: str | Path, on_row: OnRow) -> dict[str, Any]:
    """Score the texts of a file; write and return the summary.

    Args:
      path: JSON lines {"id", "text"}; see benchmarks/given.py.
      into: the folder; rows of other methods may be there already.
      on_row: called with each row.

    Raises `DataError` for answers to other questions, and `InputError` for a folder of another run.
    """
    own = plan.own(plan.questions)
    texts = read_answers(path, own, plan.everything)
    settings = {"format": 1, "data": questions_digest(plan.everything), **plan.task.settings()}
    file = RowFile(into, settings, score_names(plan), shard=plan.shard)
    with file.open():
        for question, text in zip(own, texts, strict=True):
            row = file.rows.get((ANSWERS, question.task, question.id))
            if row is not None and row.get("written") != text:
                raise InputError(f"{into} has rows of other answers, as to {question.id!r}; choose another folder")
            if row is None:
                row = row_of(plan.task, ANSWERS, question, text, 1) | WITHOUT_MODEL
                file.append(row)
            on_row(row)
    with alone(file.folder):
        file.read()
        summary = summary_of(plan, file)
        file.write_summary(summary)
    return summary
