"""Answers that were written elsewhere, scored as the method `answers`, without a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from psynth_jax.evaluation.benchmarks.given import read_answers
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
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    settings = {
        "format": 1,
        "data": questions_digest(plan.everything),
        **plan.task.settings(),
        f"{ANSWERS} {plan.shard.number}/{plan.shard.count}": digest,
    }
    file = RowFile(into, settings, score_names(plan), shard=plan.shard)
    with file.open():
        for question, text in zip(own, texts, strict=True):
            row = file.rows.get((ANSWERS, question.task, question.id))
            if row is None:
                row = row_of(plan.task, ANSWERS, question, text, 1) | WITHOUT_MODEL
                file.append(row)
            on_row(row)
    file.read()
    summary = summary_of(plan, file)
    file.write_summary(summary)
    return summary
