"""The curves of a training run: read from its metrics, drawn as pictures.

    {"step": 12, "loss": 2.3, "loss/hotpotqa": 2.1, "learning_rate": 1e-4, ..., "mfu": null}     a line of metrics.jsonl

Lines are read as a run leaves them.  A run that went back to a checkpoint writes a smaller step than before: that step ends
all larger ones before it, which are no longer part of the run.  The last line may be torn; damaged lines are counted and
left out, since curves are for looking at.  Every number that is logged gets a curve, known or not.  Knows files only: no
model, no trainer.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.errors import DataError, InputError
from psynth_jax.files import refuse_special
from psynth_jax.storage.paths import AnyPath
from psynth_jax.training.metric_files import read_parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# name -> (steps, values): steps rise, values are finite
Curves: TypeAlias = Mapping[str, tuple[HostArray, HostArray]]

# Pictures lie on the page's own ground, light or dark: they are transparent, and drawn in tones that are read on both.
INK = "#808080"
COLOURS = ("#3d85d6", "#e07b39", "#2fa36b", "#cc4f76", "#8d74d6", "#b38f1d", "#2aa1b3", "#a0705a")
DASHES = ("-", ":", "-.")  # for more curves than colours
WIDTH, HEIGHT, DOTS_PER_INCH = 7.0, 3.2, 144  # inches
LAST_STEP, LARGEST, LONGEST_NAME = 2**53, 1e38, 200  # beyond these a line is damaged, a value is no number
FEW, MANY_POINTS = 3, 60  # so many curves still let their noise be seen; so many points need their course to be drawn


@dataclasses.dataclass(frozen=True)
class Panel:
    """A picture.

    names: of its curves; "group/" stands for all that begin so.  unit: of what is shown, which is the value times `factor`.
    smooth: whether the values are noisy, and their course is drawn over them.
    """

    file: str
    title: str
    names: tuple[str, ...]
    unit: str = ""
    factor: float = 1.0
    smooth: bool = False

    def of(self, curves: Curves) -> list[str]:
        """Return the curves that it shows, in the order of its names."""
        return [name for own in self.names for name in curves if name == own or (own[-1] == "/" and name.startswith(own))]


PANELS = (
    Panel("loss.png", "Loss", ("loss", "eval_loss"), smooth=True),
    Panel("loss_by_task.png", "Loss by task", ("loss/", "eval_loss/"), smooth=True),
    Panel("objectives.png", "Objectives", ("cross_entropy", "distillation", "eval_distillation"), smooth=True),
    Panel("learning_rate.png", "Learning rate", ("learning_rate",)),
    Panel("gradient_norm.png", "Gradient norm", ("gradient_norm",), smooth=True),
    Panel(
        "tokens_per_s.png",
        "Tokens per second",
        ("branch_tokens_per_s", "prompt_tokens_per_s", "target_tokens_per_s"),
        smooth=True,
    ),
    Panel("step_seconds.png", "Step time", ("step_seconds",), "s", smooth=True),
    Panel("mfu.png", "Model FLOP utilisation", ("mfu",), "%", 100.0, smooth=True),
    Panel("memory.png", "Memory of a device, at most", ("memory_bytes",), "GiB", 2.0**-30),
)
OTHER = "other.png"
OTHERS_TITLE = "Everything else that was logged"


def read_metrics(path: AnyPath) -> tuple[Curves, int]:
    """Read WORKDIR/metrics.jsonl and its parts; return the curves, and how many lines are damaged and were left out.

    Raises `InputError` when it cannot be read, and `DataError` when no step is there.
    """
    refuse_special(path)
    try:
        content = read_parts(path)
    except FileNotFoundError as error:
        why = error.strerror if "bucket" in str(error.strerror) else f"it has no {path.name}"
        raise InputError(f"{path.parent} is not the workdir of a training run: {why}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    steps: dict[int, dict[str, float]] = {}
    damaged = 0
    whole = content[: content.rfind(b"\n") + 1]  # a line without an end is still being written, or never will be
    for line in whole.split(b"\n"):
        if not line.strip():
            continue
        found = _numbers(line)
        if found is None:
            damaged += 1
        else:
            _take(steps, *found)
    points: dict[str, list[tuple[int, float]]] = {}
    for step, numbers in steps.items():
        for name, value in numbers.items():
            points.setdefault(name, []).append((step, value))
    if not points:
        bad = f", only {damaged} damaged lines" if damaged else " yet"
        raise DataError(f"{path} holds no step{bad}")
    curves = {}
    for name, own in points.items():
        reached, values = zip(*own, strict=True)
        curves[name] = np.array(reached), np.array(values)
    return curves, damaged


def read_curves(path: AnyPath) -> Curves:
    """Return the curves of a metrics file; arguments and errors as for `read_metrics`."""
    return read_metrics(path)[0]


def _take(steps: dict[int, dict[str, float]], step: int, numbers: Mapping[str, float]) -> None:
    """Add a line to the run, whose steps rise; what the line shows to be no longer part of the run is dropped."""
    # Cheap: each step is dropped once, and the last one is the largest.
    while steps and next(reversed(steps)) > step:
        steps.popitem()
    known = steps.get(step, {})
    if not known.keys().isdisjoint(numbers):
        known = {}  # the step was done again: its evaluation, say, is of the lost attempt
    steps[step] = {**known, **numbers}


def until(curves: Curves, step: int) -> Curves:
    """Return the curves as they were after a step."""
    kept = {name: (steps[steps <= step], values[steps <= step]) for name, (steps, values) in curves.items()}
    return {name: points for name, points in kept.items() if len(points[0])}


def coarse(points: tuple[HostArray, HostArray], count: int = 50) -> list[list[float]]:
    """Return a curve as at most `count` pairs: last step and mean of so many stretches of the same length."""
    stretches = np.array_split(np.arange(len(points[0])), min(count, len(points[0])))
    return [[int(points[0][at[-1]]), round(float(points[1][at].mean()), 4)] for at in stretches]


def _numbers(line: bytes) -> tuple[int, dict[str, float]] | None:
    """Return the step of a line, and its finite numbers; None for a damaged line."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    step = value.pop("step", None)
    if type(step) is not int or not 0 <= step <= LAST_STEP:
        return None
    return step, {name: float(each) for name, each in value.items() if _is_number(each) and _can_be_shown(name)}


def _can_be_shown(name: str) -> bool:
    return name.isprintable() and 0 < len(name) <= LONGEST_NAME


def _is_number(value: object) -> bool:
    # Sums of what float32 can hold stay finite in float64; an integer may be too large to become a float at all.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def smoothed(values: HostArray) -> HostArray:
    """Return an exponential moving average over about a fiftieth of the values, without a bias to its start."""
    keep = 1 - 1 / max(len(values) / 50, 1)
    average, weight, found = 0.0, 0.0, []
    for value in values.tolist():
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(average / weight)
    return np.array(found)


def draw(curves: Curves, folder: Path) -> dict[str, str]:
    """Draw the pictures that there are curves for; return their titles by file name."""
    drawn, left = {}, set(curves)
    for panel in PANELS:
        if names := panel.of(curves):
            _draw_panel(panel, names, curves, folder)
            drawn[panel.file] = panel.title
            left -= set(names)
    if left:
        _draw_others(sorted(left), curves, folder)
        drawn[OTHER] = OTHERS_TITLE
    return drawn


def _draw_panel(panel: Panel, names: Sequence[str], curves: Curves, folder: Path) -> None:
    figure = _figure(HEIGHT)
    axes = figure.add_subplot()
    stems = sorted({_stem(name) for name in names})  # a task has one colour, in training and in evaluation
    for name in names:
        steps, values = curves[name]
        cycle, number = divmod(stems.index(_stem(name)), len(COLOURS))
        colour, dash, values = COLOURS[number], DASHES[cycle % len(DASHES)], values * panel.factor
        if name.startswith("eval_"):
            axes.plot(steps, values, color=colour, marker="o", markersize=3.5, linestyle="--", label=_label(name))
            continue
        smooth = panel.smooth and len(values) >= MANY_POINTS
        if smooth and len(names) <= FEW:
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1.2)
        _line(axes, steps, smoothed(values) if smooth else values, colour, dash, _label(name))
    _dress(axes, panel.unit)
    if len(names) > 1:
        _legend(axes, len(names))
    _save(figure, folder / panel.file)


def _stem(name: str) -> str:
    return name.removeprefix("eval_")


def _label(name: str) -> str:
    """Name a curve as people would: what differs within its picture."""
    group, _, task = _stem(name).rpartition("/")
    shown = (task if group else _stem(name).removesuffix("_per_s")).replace("_", " ")
    return f"{shown}, evaluation" if name.startswith("eval_") else shown


def _draw_others(names: Sequence[str], curves: Curves, folder: Path) -> None:
    """Draw what no picture is made for: a small one each, three in a row."""
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = _figure(1.9 * rows)
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, number)
        _line(axes, *curves[name], COLOURS[0], "-", name)
        _dress(axes, "")
        axes.set_title(name, fontsize=8, color=INK, loc="left", pad=11, parse_math=False)  # above a power of ten
    _save(figure, folder / OTHER)


def _line(axes: Axes, steps: HostArray, values: HostArray, colour: str, dash: str, label: str) -> None:
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps, values, color=colour, linestyle=dash, linewidth=1.6, label=label, marker=marker, markersize=3.5)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure  # a third of a second, which no other command should wait for

    return Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")


def _dress(axes: Axes, unit: str) -> None:
    axes.set_facecolor("none")
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
    axes.yaxis.get_offset_text().set(color=INK, fontsize=8)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.set_xlabel("step", color=INK, fontsize=8)
    axes.set_ylabel(unit, color=INK, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _legend(axes: Axes, count: int) -> None:
    """Put names above the curves, which they would hide inside."""
    columns = min(count, 4)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=8, labelcolor=INK, borderaxespad=0.2
    )


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, transparent=True)
