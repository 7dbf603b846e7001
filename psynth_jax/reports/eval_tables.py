"""The tables of an evaluation's page: what was reached, what it took, folders side by side.

Scores are in percent and differences in points, with their 95% intervals: "62.3 [56.7, 67.7]",
"+3.1 [-0.4, 6.6]".
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from psynth_jax.reports.eval_folder import Evaluation
from psynth_jax.reports.eval_methods import CONTROLS, TEXT, note_of, ordered, score_label
from psynth_jax.reports.eval_summary import MethodNumbers
from psynth_jax.reports.json_objects import Interval

NONE = "–"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell.  mark: "better", "worse" or "noise" for a difference, else ""."""

    text: str
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of a table: its heading, a remark under it, its cells."""

    name: str
    note: str
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows under a common heading."""

    label: str
    lines: tuple[Line, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.  columns: headings after the first one, which is "method"."""

    caption: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]


def scores_table(evaluation: Evaluation) -> Table:
    """Return what the methods reached: scores, differences to text, what went wrong."""
    scores = evaluation.scores
    compared = []
    for score in scores:
        if any(score in method.differences for method in evaluation.methods):
            compared.append(score)
    columns = []
    for score in scores:
        columns.append(f"{score_label(score)}, %")
        if score in compared:
            columns.append(f"{score_label(score)} against text, points")
    columns += ["Same answer as text, %", "Cut off", "Does not fit", "Questions"]
    lines = {}
    for method in evaluation.methods:
        cells = []
        for score in scores:
            cells.append(Cell(percent(method.scores.get(score))))
            if score in compared:
                cells.append(_difference(method, score))
        cells.append(Cell(percent(method.consistency)))
        for number in (method.cut_off, method.does_not_fit, method.answers):
            cells.append(Cell(f"{number:,}"))
        lines[method.name] = cells
    return Table("What the methods reached", tuple(columns), _grouped(lines, evaluation))


def costs_table(evaluation: Evaluation) -> Table:
    """Return what the methods took: median times, mean tokens."""
    columns = (
        "Time to first token",
        "Total time",
        "Tokens prefilled",
        "Tokens read from caches",
        "Tokens written",
    )
    lines = {}
    for method in evaluation.methods:
        cells = [Cell(duration(method.ttft_s)), Cell(duration(method.total_s))]
        for tokens in (method.prompt_tokens, method.cached_tokens, method.generated_tokens):
            cells.append(Cell(NONE if tokens is None else f"{tokens:,.0f}"))
        lines[method.name] = cells
    caption = "What the methods took: medians of times, means of tokens"
    return Table(caption, columns, _grouped(lines, evaluation))


def by_task_table(evaluation: Evaluation) -> Table | None:
    """Return the main score of every method by task; None for a single task."""
    score = evaluation.main_score
    if score is None or not evaluation.by_task:
        return None
    lines = {}
    for method in evaluation.methods:
        cells = []
        for methods in evaluation.by_task.values():
            cells.append(Cell(percent(methods.get(method.name, {}).get(score))))
        lines[method.name] = cells
    caption = f"{score_label(score)} by task, %"
    return Table(caption, tuple(evaluation.by_task), _grouped(lines, evaluation))


def comparison_table(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Table:
    """Return the main score and the time of every method, folder by folder.

    names: of the folders, as the page calls them.
    """
    columns = []
    for name, evaluation in zip(names, evaluations, strict=True):
        score = evaluation.main_score
        columns.append(f"{name}: {score_label(score) if score else 'score'}, %")
        columns.append(f"{name}: time to first token")
    by_folder = []
    for evaluation in evaluations:
        by_folder.append({method.name: method for method in evaluation.methods})
    everything: dict[str, None] = {}
    for methods in by_folder:
        everything |= dict.fromkeys(methods)
    lines = {}
    for name in ordered(everything):
        cells: list[Cell] = []
        for evaluation, methods in zip(evaluations, by_folder, strict=True):
            cells += _compared(methods.get(name), evaluation.main_score)
        lines[name] = cells
    return Table("The folders side by side", tuple(columns), _grouped(lines))


def _compared(method: MethodNumbers | None, score: str | None) -> tuple[Cell, Cell]:
    if method is None or score is None:
        return Cell(NONE), Cell(NONE)
    return Cell(percent(method.scores.get(score))), Cell(duration(method.ttft_s))


def _grouped(
    lines: Mapping[str, Sequence[Cell]],
    evaluation: Evaluation | None = None,
) -> tuple[Group, ...]:
    """Put lines under the headings of methods and controls; say where a method is not finished."""
    unfinished = set()
    if evaluation is not None and not evaluation.running:
        unfinished = {method.name for method in evaluation.methods if not method.finished}
    own: list[Line] = []
    controls: list[Line] = []
    for name, cells in lines.items():
        note = note_of(name)
        if name in unfinished:
            note = f"{note}; not finished, no intervals".removeprefix("; ")
        group = controls if name in CONTROLS else own
        group.append(Line(name, note, tuple(cells)))
    groups = (Group("Methods", tuple(own)), Group("Controls", tuple(controls)))
    return tuple(group for group in groups if group.lines)


def _difference(method: MethodNumbers, score: str) -> Cell:
    difference = method.differences.get(score)
    if difference is None or method.name == TEXT:
        return Cell(NONE)
    text = f"{100 * difference.value:+.1f}{_bounds(difference)}"
    if difference.crosses_zero:
        return Cell(text, "noise")
    return Cell(text, "better" if difference.value > 0 else "worse")


def percent(score: Interval | None) -> str:
    """Return a share in percent, with its interval where there is one."""
    return NONE if score is None else f"{100 * score.value:.1f}{_bounds(score)}"


def _bounds(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def duration(seconds: float | None) -> str:
    """Return seconds with a unit that suits them."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.2f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def facts(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Say what people look for first: (label, value)."""
    if evaluation.task:
        yield "task", evaluation.task
    yield "questions", f"{len(evaluation.questions):,}"
    score = evaluation.main_score
    for method in evaluation.methods:
        if score is not None and score in method.scores and method.name not in CONTROLS:
            value = 100 * method.scores[score].value
            yield f"{score_label(score)}, {method.name}", f"{value:.1f}%"
    if evaluation.workers_seconds is not None:
        yield "workers wrote for", duration(evaluation.workers_seconds)
    if evaluation.workers_tokens_per_s is not None:
        yield "workers' tokens per second", f"{evaluation.workers_tokens_per_s:,.0f}"


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Go through the values of nested settings by dotted name."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            yield f"{prefix}{name}", value
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)
