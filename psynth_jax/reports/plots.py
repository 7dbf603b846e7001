"""The pictures of an evaluation: scores, times, tokens, a gate's curve, folders side by side.

Pictures have no ground of their own, and are drawn in tones that read on a light page and on a
dark one.

    o-----   a score with its 95% interval        |   0: the same as the method `text`
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import IdentityTransform

from psynth_jax.reports.eval_folder import Evaluation
from psynth_jax.reports.eval_methods import CONTROLS, TEXT, ordered, score_label
from psynth_jax.reports.eval_summary import Gate, MethodNumbers
from psynth_jax.reports.json_objects import Interval
from psynth_jax.reports.label_places import Box, Place, place_labels

INK = "#808080"
COLOURS = ("#3d85d6", "#e07b39", "#2fa36b", "#cc4f76", "#8d74d6", "#b38f1d", "#2aa1b3", "#a0705a")
METHOD, CONTROL = COLOURS[0], INK
BETTER, WORSE = COLOURS[2], COLOURS[3]
WIDTH, DOTS_PER_INCH = 5.6, 180  # inches; dots
FONT = 8.5  # points
LONGEST_LABEL = 28  # characters
LEGEND_LETTERS, LEGEND_HANDLE = 60, 6  # characters that fit side by side; those of a name's sign
SPREAD = 12.0  # a time axis is logarithmic where the longest time is so many times the shortest

NAMES = ("accuracy", "time", "tokens", "accuracy_ttft", "gate", "comparison")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture on the disk.  caption: what it shows, also for those who cannot see it."""

    file: str
    title: str
    caption: str


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A picture to be drawn: height in inches, and what draws it into a figure."""

    name: str
    title: str
    caption: str
    height: float
    draw: Callable[[Figure], None]


def draw_evaluation(evaluation: Evaluation, folder: Path, prefix: str) -> list[Picture]:
    """Draw what an evaluation has numbers for, as PREFIXaccuracy.png and so on."""
    drawn = []
    for panel in _panels(evaluation):
        file = f"{prefix}{panel.name}.png"
        figure = _figure(panel.height)
        panel.draw(figure)
        figure.savefig(folder / file, transparent=True)
        drawn.append(Picture(file, panel.title, panel.caption))
    return drawn


def _panels(evaluation: Evaluation) -> Iterator[_Panel]:
    methods, gate = evaluation.methods, evaluation.gate
    tall = 0.9 + 0.3 * len(methods)
    if evaluation.main_score is not None:
        yield from _score_panels(methods, evaluation.main_score, tall)
    if any(method.ttft_s is not None for method in methods):
        caption = "Medians over the questions"
        yield _Panel("time", "Time", caption, tall, functools.partial(_times, methods=methods))
    if any(method.prompt_tokens is not None for method in methods):
        caption = "Tokens that were prefilled, read from caches and written; means"
        draw = functools.partial(_tokens, methods=methods)
        yield _Panel("tokens", "Tokens", caption, tall + 0.3, draw)
    if gate is not None and gate.curve:
        caption = f"What the gate accepts and reaches, by the threshold of its {gate.measure}"
        yield _Panel("gate", "Gate", caption, 3.0, functools.partial(_gate, gate=gate))


def _score_panels(methods: Sequence[MethodNumbers], score: str, tall: float) -> Iterator[_Panel]:
    label = score_label(score)
    caption = f"{label} of each method with its 95% interval"
    if not any(method.finished for method in methods):
        caption = f"{label} of each method so far"
    if any(score in method.differences for method in methods):
        caption += ", and its paired difference to text: an interval that crosses 0 is noise"
    draw = functools.partial(_scores, methods=methods, score=score)
    yield _Panel("accuracy", label, caption, tall, draw)
    if any(method.ttft_s is not None and score in method.scores for method in methods):
        title = f"{label} against time to first token"
        caption = "Up and to the left is better"
        if any(method.ttft_s is None and score in method.scores for method in methods):
            caption += "; a dashed line is a method without a time, which asks no model"
        draw = functools.partial(_scatter, methods=methods, score=score)
        yield _Panel("accuracy_ttft", title, caption, 3.9, draw)


def draw_comparison(
    evaluations: Sequence[Evaluation],
    names: Sequence[str],
    folder: Path,
    prefix: str,
) -> Picture | None:
    """Draw the main scores of several evaluations side by side; None where there is no score."""
    everything: dict[str, None] = {}
    for evaluation in evaluations:
        everything |= dict.fromkeys(method.name for method in evaluation.methods if method.scores)
    methods = ordered(everything)
    if not methods:
        return None
    figure = _figure(1.2 + _rows_height(len(methods), len(evaluations)))
    axes = figure.add_subplot()
    for number, evaluation in enumerate(evaluations):
        colour = COLOURS[number % len(COLOURS)]
        offset = 0.7 * ((number + 0.5) / len(evaluations) - 0.5)
        score = evaluation.main_score
        label = _printable(names[number])
        for method in evaluation.methods:
            if score is not None and score in method.scores:
                at = methods.index(method.name) + offset
                _interval(axes, at, method.scores[score], colour, label)
                label = "_"  # one entry in the legend is enough
    _rows(axes, methods)
    _dress(axes, "main score, %", grid="x")
    _legend(figure)
    file = f"{prefix}comparison.png"
    figure.savefig(folder / file, transparent=True)
    caption = "The main score of each folder by method, with 95% intervals"
    return Picture(file, "Folders side by side", caption)


def _rows_height(methods: int, folders: int) -> float:
    """Return the inches that so many intervals under each other need."""
    return methods * max(0.3, 0.16 * folders)


def _scores(figure: Figure, methods: Sequence[MethodNumbers], score: str) -> None:
    """Draw scores, and beside them the paired differences to `text`."""
    compared = any(score in method.differences for method in methods)
    columns = 2 if compared else 1
    left = figure.add_subplot(1, columns, 1)
    for at, method in enumerate(methods):
        if score in method.scores:
            _interval(left, at, method.scores[score], _colour(method))
    _rows(left, [method.name for method in methods])
    _dress(left, f"{score_label(score)}, %", grid="x")
    left.set_xlim(_widened(left.get_xlim()))
    if not compared:
        return
    right = figure.add_subplot(1, columns, 2, sharey=left)
    right.axvline(0, color=INK, linewidth=1.2)
    for at, method in enumerate(methods):
        if method.name != TEXT and score in method.differences:
            difference = method.differences[score]
            _interval(right, at, difference, _verdict(difference))
    right.tick_params(labelleft=False)
    _dress(right, "difference to text, points", grid="x")
    right.set_xlim(_widened(right.get_xlim()))


def _widened(limits: tuple[float, float], least: float = 4.0) -> tuple[float, float]:
    """Return an axis of at least so many points: scores that are all the same would have one of width 0."""
    low, high = limits
    lacking = max(least - (high - low), 0.0)
    return low - lacking / 2, high + lacking / 2


def _verdict(difference: Interval) -> str:
    if difference.crosses_zero:
        return INK
    return BETTER if difference.value > 0 else WORSE


def _colour(method: MethodNumbers) -> str:
    return CONTROL if method.name in CONTROLS else METHOD


def _interval(axes: Axes, at: float, found: Interval, colour: str, label: str = "_") -> None:
    """Draw a score, or a difference of scores, in percent; "_" keeps it out of the legend."""
    value = 100 * found.value
    if found.low is not None and found.high is not None:
        bounds = 100 * found.low, 100 * found.high
        axes.plot(bounds, (at, at), color=colour, linewidth=1.8, solid_capstyle="butt")
    axes.plot([value], [at], "o", color=colour, markersize=5.5, label=label)


def _times(figure: Figure, methods: Sequence[MethodNumbers]) -> None:
    """Draw the time to the first token and the whole time, with a bar for each method."""
    names = [method.name for method in methods]
    first = [method.ttft_s for method in methods]
    whole = [method.total_s for method in methods]
    has_total = any(value is not None for value in whole)
    left = figure.add_subplot(1, 1 + has_total, 1)
    unit = _bars(left, first, methods)
    _rows(left, names)
    _dress(left, f"time to first token, {unit}", grid="x")
    if has_total:
        right = figure.add_subplot(1, 2, 2, sharey=left)
        unit = _bars(right, whole, methods)
        right.tick_params(labelleft=False)
        _dress(right, f"total time, {unit}", grid="x")


def _bars(axes: Axes, seconds: Sequence[float | None], methods: Sequence[MethodNumbers]) -> str:
    """Draw times as bars; return their unit."""
    unit, factor = _unit([value for value in seconds if value is not None])
    for at, (value, method) in enumerate(zip(seconds, methods, strict=True)):
        if value is None:
            axes.text(0, at, "  –", color=INK, fontsize=FONT, va="center")
            continue
        length = factor * value
        axes.barh(at, length, height=0.62, color=_colour(method))
        axes.text(length, at, f" {length:.3g}", color=INK, fontsize=FONT - 0.5, va="center")
    axes.margins(x=0.18)  # room for the number behind the longest bar
    axes.set_xlim(left=0)
    return unit


def _unit(seconds: Sequence[float]) -> tuple[str, float]:
    """Return the unit that suits times, and by what seconds are multiplied for it."""
    return ("ms", 1000.0) if max(seconds) < 1 else ("s", 1.0)


def _tokens(figure: Figure, methods: Sequence[MethodNumbers]) -> None:
    """Draw a bar for each method, cut into tokens prefilled, read and written."""
    axes = figure.add_subplot()
    kinds = (
        ("prefilled", "prompt_tokens"),
        ("read from caches", "cached_tokens"),
        ("written", "generated_tokens"),
    )
    begins = [0.0] * len(methods)
    for number, (label, field) in enumerate(kinds):
        values = []
        for method in methods:
            values.append(getattr(method, field) or 0.0)
        axes.barh(range(len(methods)), values, 0.62, begins, color=COLOURS[number], label=label)
        begins = [begin + value for begin, value in zip(begins, values, strict=True)]
    _rows(axes, [method.name for method in methods])
    _dress(axes, "tokens", grid="x")
    _legend(figure)


def _scatter(figure: Figure, methods: Sequence[MethodNumbers], score: str) -> None:
    """Draw score against time; a method without a time is a line at its score."""
    axes = figure.add_subplot()
    marks: list[tuple[str, float, float]] = []
    times = [method.ttft_s for method in methods if method.ttft_s is not None]
    unit, factor = _unit(times)
    for method in methods:
        if score not in method.scores:
            continue
        reached = method.scores[score]
        if method.ttft_s is None:
            axes.axhline(100 * reached.value, color=INK, linewidth=1, linestyle="--")
            continue
        time = factor * method.ttft_s
        _upright(axes, time, reached, _colour(method))
        marks.append((method.name, time, 100 * reached.value))
    if min(times) > 0 and max(times) > SPREAD * min(times):
        axes.set_xscale("log")
    axes.margins(0.12, 0.12)
    axes.set_ylim(_widened(axes.get_ylim()))
    _dress(axes, f"time to first token, {unit}", grid="both")
    axes.set_ylabel(f"{score_label(score)}, %", color=INK, fontsize=FONT)
    lines = []
    for method in methods:
        if method.ttft_s is None and score in method.scores:
            lines.append((method.name, 100 * method.scores[score].value))
    _label_marks(figure, axes, marks, lines)


def _upright(axes: Axes, x: float, reached: Interval, colour: str) -> None:
    if reached.low is not None and reached.high is not None:
        bounds = 100 * reached.low, 100 * reached.high
        axes.plot((x, x), bounds, color=colour, linewidth=1.2, alpha=0.45)
    axes.plot([x], [100 * reached.value], color=colour, marker="o", markersize=6)


def _label_marks(
    figure: Figure,
    axes: Axes,
    marks: Sequence[tuple[str, float, float]],
    lines: Sequence[tuple[str, float]],
) -> None:
    """Write names at points and at lines such that none covers another."""
    figure.draw_without_rendering()  # the layout decides where a point is in pixels
    figure.set_layout_engine("none")  # and must not move it afterwards
    frame = axes.get_window_extent()
    inside = Box(frame.x0, frame.y0, frame.x1, frame.y1)
    named, taken = list(marks), []
    to_data = axes.transData.inverted()
    for name, height in lines:
        # The label of a line belongs to its right end.
        end = to_data.transform((frame.x1 - 4, 0))[0]
        named.append((name, float(end), height))
        level = float(axes.transData.transform((end, height))[1])
        taken.append(Box(frame.x0, level - 2, frame.x1, level + 2))
    texts, sizes, points = [], [], []
    for name, x, y in named:
        text = axes.text(x, y, _printable(name), color=INK, fontsize=FONT, parse_math=False)
        extent = text.get_window_extent()
        texts.append(text)
        sizes.append((extent.width, extent.height))
        pixel = axes.transData.transform((x, y))
        points.append((float(pixel[0]), float(pixel[1])))
    places = place_labels(points, sizes, inside, taken)
    for text, place, point in zip(texts, places, points, strict=True):
        _move(axes, text, place, point)


def _move(axes: Axes, text: Text, place: Place, point: tuple[float, float]) -> None:
    box = place.box
    text.set_transform(IdentityTransform())
    text.set_position((box.left, (box.bottom + box.top) / 2))
    text.set_verticalalignment("center")
    if place.far:
        nearest = min(max(point[0], box.left), box.right), min(max(point[1], box.bottom), box.top)
        xs, ys = (point[0], nearest[0]), (point[1], nearest[1])
        axes.plot(xs, ys, color=INK, linewidth=0.6, alpha=0.7, transform=IdentityTransform())


def _gate(figure: Figure, gate: Gate) -> None:
    """Draw what a gate accepts and reaches by threshold, and what it reaches by time."""
    has_time = any(point.ttft_s is not None for point in gate.curve)
    left = figure.add_subplot(1, 1 + has_time, 1)
    label = _printable(score_label(gate.score))
    thresholds = [point.threshold for point in gate.curve]
    scores = [100 * point.score for point in gate.curve]
    accepted = [100 * point.accepted for point in gate.curve]
    left.plot(thresholds, scores, color=COLOURS[0], marker="o", markersize=3, label=label)
    left.plot(
        thresholds,
        accepted,
        color=COLOURS[1],
        marker="o",
        markersize=3,
        linestyle="--",
        label="accepted",
    )
    if gate.threshold is not None:
        left.axvline(gate.threshold, color=INK, linewidth=1, linestyle=":", label="chosen")
    _dress(left, f"threshold of {_printable(gate.measure)}", grid="both")
    left.set_ylabel("%", color=INK, fontsize=FONT)
    _legend(figure)
    if has_time:
        right = figure.add_subplot(1, 2, 2)
        times, reached = [], []
        for point in gate.curve:
            if point.ttft_s is not None:
                times.append(point.ttft_s)
                reached.append(100 * point.score)
        right.plot(times, reached, color=COLOURS[0], marker="o", markersize=3)
        _dress(right, "time to first token, s", grid="both")
        right.set_ylabel(f"{label}, %", color=INK, fontsize=FONT)


# ----------------------------------------------------------------------------------------- form


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a picture, the first at the top."""
    labels = [_printable(name) for name in names]
    axes.set_yticks(range(len(names)), labels, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _dress(axes: Axes, unit: str, grid: Literal["both", "x"]) -> None:
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=INK, alpha=0.25, linewidth=0.6)
    axes.tick_params(which="both", colors=INK, labelsize=FONT, length=0)
    axes.xaxis.get_offset_text().set(color=INK, fontsize=FONT)
    axes.set_xlabel(unit, color=INK, fontsize=FONT, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _legend(figure: Figure) -> None:
    """Put names above the picture, in as many columns as fit its width."""
    names = []
    for axes in figure.axes:
        names += axes.get_legend_handles_labels()[1]
    longest = max(len(name) for name in names)
    columns = LEGEND_LETTERS // (longest + LEGEND_HANDLE)
    legend = figure.legend(
        loc="outside upper left",
        ncols=min(max(columns, 1), 4),
        frameon=False,
        fontsize=FONT,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a folder may be called $a


def _printable(name: str) -> str:
    """Return a name that the font can show, and no longer than a picture has room for."""
    found = "".join(_letters(name))
    return found if len(found) <= LONGEST_LABEL else f"{found[: LONGEST_LABEL - 1]}…"


def _letters(name: str) -> Iterator[str]:
    # The font has every printable letter of Latin-1; it warns of others that it lacks.
    for letter in name:
        yield letter if letter.isprintable() and ord(letter) < 256 else "?"
