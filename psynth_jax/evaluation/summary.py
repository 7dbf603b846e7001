"""What rows say together: means with intervals per method, time and tokens, and methods against each other.

`branches` is compared with every other method, and every method with `text`: in its scores, and in how often both give the
same answer (judge consistency: a method may be right as often as another, and about other questions).

A question that does not fit a method's context window counts: its scores are 0, and it is among `does_not_fit`.  Its time
and tokens are left out.  A method that asks no model has no time: its `ttft_s` is null, and its tokens are 0.  Knows rows
only, no model.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from psynth_jax.evaluation.intervals import Interval, difference_interval, mean_interval, ratio_interval
from psynth_jax.evaluation.rows import DOES_NOT_FIT, Row

COMPARED, YARDSTICK = "branches", "text"


def summarise(rows: Mapping[str, Sequence[Row]], scores: Sequence[str], seed: int) -> dict[str, Any]:
    """Summarise rows by method.

    Args:
      rows: method -> its rows, of the same questions in the same order.
      scores: the names of the scores in a row.
      seed: of the bootstrap.

    Returns:
      "methods": name -> {"n", a {"mean", "low", "high"} per score, "does_not_fit", "cut_off", "ttft_s" and "total_s"
      (medians, None without any time), "prompt_tokens", "cached_tokens", "generated_tokens" (means), and where `text` has
      answered, too, "difference_to_text": score -> {"value", "low", "high"}, and "judge_consistency": {"mean", "low",
      "high"}}; "by_task": the scores of each task where there are several; "comparisons": [{"method", "against", "score",
      "difference", "ratio"}].
    """
    methods = {}
    for name, own in rows.items():
        methods[name] = _method(own, scores, seed)
        if YARDSTICK in rows and name != YARDSTICK:
            methods[name] |= _against_text(own, rows[YARDSTICK], scores, seed)
    found: dict[str, Any] = {"methods": methods}
    tasks = sorted({row["task"] for own in rows.values() for row in own})
    if len(tasks) > 1:
        found["by_task"] = {task: _of_task(rows, task, scores, seed) for task in tasks}
    found["comparisons"] = _comparisons(rows, scores, seed)
    return found


def _of_task(rows: Mapping[str, Sequence[Row]], task: str, scores: Sequence[str], seed: int) -> dict[str, Any]:
    own = {name: [row for row in each if row["task"] == task] for name, each in rows.items()}
    return {name: {"n": len(each)} | _scores(each, scores, seed) for name, each in own.items()}


def _method(rows: Sequence[Row], scores: Sequence[str], seed: int) -> dict[str, Any]:
    answered = [row for row in rows if row["finish_reason"] != DOES_NOT_FIT]
    counts = ("prompt_tokens", "cached_tokens", "generated_tokens")
    return {
        "n": len(rows),
        **_scores(rows, scores, seed),
        "does_not_fit": len(rows) - len(answered),
        "cut_off": sum(row["finish_reason"] == "length" for row in answered),
        "ttft_s": _median(answered, "ttft_s"),
        "total_s": _median(answered, "total_s"),
        **{name: statistics.fmean(row[name] for row in answered) if answered else None for name in counts},
    }


def _median(rows: Sequence[Row], name: str) -> float | None:
    times = [row[name] for row in rows if row.get(name) is not None]
    return statistics.median(times) if times else None


def _against_text(own: Sequence[Row], text: Sequence[Row], scores: Sequence[str], seed: int) -> dict[str, Any]:
    """Compare a method with `text`, question by question."""
    differences = {}
    for name in scores:
        first = [row[name] for row in own]
        second = [row[name] for row in text]
        differences[name] = _described(difference_interval(first, second, seed))
    same = []
    for one, other in zip(own, text, strict=True):
        same.append(float(_key(one) == _key(other) != ""))  # two that give no answer do not agree
    found = mean_interval(same, seed)
    consistency = {"mean": found.value, "low": found.low, "high": found.high}
    return {"difference_to_text": differences, "judge_consistency": consistency}


def _key(row: Row) -> str:
    """Return what rows with one answer share; rows of earlier versions tell by their predictions."""
    return str(row.get("key", row["prediction"]))


def _scores(rows: Sequence[Row], scores: Sequence[str], seed: int) -> dict[str, Any]:
    intervals = {name: mean_interval([row[name] for row in rows], seed) for name in scores}
    return {name: {"mean": found.value, "low": found.low, "high": found.high} for name, found in intervals.items()}


def _comparisons(rows: Mapping[str, Sequence[Row]], scores: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Compare `branches` with the others, question by question."""
    if COMPARED not in rows:
        return []
    return [
        {"method": COMPARED, "against": other, "score": name} | _compared(rows[COMPARED], rows[other], name, seed)
        for other in rows
        if other != COMPARED
        for name in scores
    ]


def _compared(first: Sequence[Row], second: Sequence[Row], name: str, seed: int) -> dict[str, Any]:
    pair = [row[name] for row in first], [row[name] for row in second]
    return {
        "difference": _described(difference_interval(*pair, seed)),
        "ratio": _described(ratio_interval(*pair, seed)),
    }


def _described(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else dataclasses.asdict(interval)
