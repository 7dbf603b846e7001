"""What the methods of an evaluation reached and took: read from its summary, or counted from rows.

    {"questions": 300, "comparisons": [...], "methods": {"branches": {
       "n": 300, "accuracy": {"mean": 0.6, "low": 0.5, "high": 0.7}, "ttft_s": 0.2,
       "difference_to_text": {"accuracy": {"value": 0.1, "low": 0.0, "high": 0.2}}, ...}}}

Intervals are those of the summary: nothing is resampled here.  Earlier summaries compare with the
method `text` for `branches` alone, and have no total time.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence

from psynth_jax.reports.eval_lines import Answer
from psynth_jax.reports.json_objects import Interval, JsonObject

# Values of a method that have a mean and an interval, and are not scores.
_NOT_SCORES = ("judge_consistency", "difference_to_text")


@dataclasses.dataclass(frozen=True)
class MethodNumbers:
    """The numbers of a method.

    answers: questions that it answered.  finished: whether it answered all; without that it has
    means and no intervals.  scores, differences (to the method `text`): by name of the score, 1 is
    all right.  consistency: share of questions with the same answer as `text`.  ttft_s, total_s:
    medians in seconds.  Tokens: means.  None: not measured.
    """

    name: str
    answers: int
    finished: bool
    scores: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    consistency: Interval | None
    ttft_s: float | None
    total_s: float | None
    prompt_tokens: float | None
    cached_tokens: float | None
    generated_tokens: float | None
    cut_off: int
    does_not_fit: int


@dataclasses.dataclass(frozen=True)
class GatePoint:
    """What a gate reaches at a threshold: share of questions accepted, score, times in seconds."""

    threshold: float
    accepted: float
    score: float
    ttft_s: float | None
    total_s: float | None


@dataclasses.dataclass(frozen=True)
class Gate:
    """A gate that takes an answer, or passes the question on, by a measure and a threshold.

    curve: by rising threshold; without any, the gate was given and nothing was measured.
    """

    measure: str
    score: str
    threshold: float | None
    curve: tuple[GatePoint, ...]


def read_methods(summary: JsonObject) -> dict[str, MethodNumbers]:
    """Return the methods of a summary by name.  Raises `DataError` for a value of a wrong kind."""
    methods = summary.object("methods")
    if methods is None:
        raise summary.wrong("methods", "an object with the numbers of each method")
    found = {}
    for name in methods.values:
        own = methods.object(name)
        if own is not None:
            found[name] = _method(name, own)
    _take_comparisons(found, summary)
    return found


def read_by_task(summary: JsonObject) -> dict[str, dict[str, Mapping[str, Interval]]]:
    """Return scores by task and method, where there are several tasks.

    Raises `DataError` as `read_methods`.
    """
    found: dict[str, dict[str, Mapping[str, Interval]]] = {}
    tasks = summary.object("by_task")
    if tasks is None:
        return found
    for task in tasks.values:
        methods = tasks.object(task)
        if methods is None:
            continue
        found[task] = {}
        for name in methods.values:
            own = methods.object(name)
            if own is not None:
                found[task][name] = _scores(own)
    return found


def _method(name: str, own: JsonObject) -> MethodNumbers:
    return MethodNumbers(
        name=name,
        answers=own.count("n"),
        finished=True,
        scores=_scores(own),
        differences=_differences(own),
        consistency=own.interval("judge_consistency", "mean"),
        ttft_s=own.number("ttft_s"),
        total_s=own.number("total_s"),
        prompt_tokens=own.number("prompt_tokens"),
        cached_tokens=own.number("cached_tokens"),
        generated_tokens=own.number("generated_tokens"),
        cut_off=own.count("cut_off"),
        does_not_fit=own.count("does_not_fit"),
    )


def _scores(own: JsonObject) -> dict[str, Interval]:
    scores = {}
    for key, value in own.values.items():
        score = own.interval(key, "mean") if _is_score(key, value) else None
        if score is not None:
            scores[key] = score
    return scores


def _is_score(key: str, value: object) -> bool:
    return key not in _NOT_SCORES and isinstance(value, dict) and "mean" in value


def _differences(own: JsonObject) -> dict[str, Interval]:
    given = own.object("difference_to_text")
    found: dict[str, Interval] = {}
    if given is None:
        return found
    for score in given.values:
        difference = given.interval(score, "value")
        if difference is not None:
            found[score] = difference
    return found


def _take_comparisons(found: dict[str, MethodNumbers], summary: JsonObject) -> None:
    """Take differences to `text` from the comparisons where a method has none of its own."""
    for each in summary.objects("comparisons"):
        name, score = each.text("method"), each.text("score")
        difference = each.interval("difference", "value")
        if difference is None or each.text("against") != "text" or name not in found:
            continue
        if score not in found[name].differences:
            differences = {**found[name].differences, score: difference}
            found[name] = dataclasses.replace(found[name], differences=differences)


def count_answers(name: str, answers: Sequence[Answer]) -> MethodNumbers:
    """Return the numbers of a method that has not answered all questions yet, without intervals."""
    fitting = [answer for answer in answers if answer.fits]
    scores = {}
    for score in answers[0].scores:
        values = [answer.scores[score] for answer in answers if score in answer.scores]
        scores[score] = Interval(statistics.fmean(values))
    return MethodNumbers(
        name=name,
        answers=len(answers),
        finished=False,
        scores=scores,
        differences={},
        consistency=None,
        ttft_s=_median(answer.ttft_s for answer in fitting),
        total_s=_median(answer.total_s for answer in fitting),
        prompt_tokens=_mean(answer.prompt_tokens for answer in fitting),
        cached_tokens=_mean(answer.cached_tokens for answer in fitting),
        generated_tokens=_mean(answer.generated_tokens for answer in fitting),
        cut_off=sum(answer.finish_reason == "length" for answer in fitting),
        does_not_fit=len(answers) - len(fitting),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def read_gate(summary: JsonObject) -> Gate | None:
    """Return the gate of a summary, None if it has none.  Raises `DataError` as `read_methods`."""
    own = summary.object("gate")
    if own is None:
        return None
    curve = []
    for point in own.objects("curve"):
        threshold = point.signed("threshold")  # a log-probability is negative
        if threshold is None:
            raise point.wrong("threshold", "a number")
        reached = GatePoint(
            threshold=threshold,
            accepted=point.share("accepted"),
            score=point.share("score" if "score" in point.values else "accuracy"),
            ttft_s=point.number("ttft_s"),
            total_s=point.number("total_s"),
        )
        curve.append(reached)
    curve.sort(key=lambda point: point.threshold)
    return Gate(
        measure=own.text("measure", "confidence"),
        score=own.text("score", "accuracy"),
        threshold=own.signed("threshold"),
        curve=tuple(curve),
    )
