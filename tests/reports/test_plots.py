"""The pictures of an evaluation: which there are, that they show something, and names that no font has."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from psynth_jax.reports import plots
from psynth_jax.reports.eval_folder import Evaluation, read_evaluation
from psynth_jax.reports.plots import NAMES, draw_comparison, draw_evaluation
from tests.reports.evaluation_folders import write_folder


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    return read_evaluation(write_folder(tmp_path / "sums", 20))


def check_is_drawn(path: Path) -> None:
    """No ground of its own, and things of several colours on it."""
    picture = matplotlib.image.imread(path)
    assert picture[0, 0, 3] == 0
    opaque = picture[picture[..., 3] == 1]
    assert len(opaque) > 500
    assert len({tuple(colour) for colour in (opaque[:, :3] * 8).round().tolist()}) > 1


def test_everything_is_drawn(tmp_path: Path, evaluation: Evaluation) -> None:
    drawn = draw_evaluation(evaluation, tmp_path, "report_")
    files = ["accuracy", "accuracy_ttft", "time", "tokens", "gate"]
    assert [picture.file for picture in drawn] == [f"report_{name}.png" for name in files]
    assert [picture.title for picture in drawn] == [
        "Accuracy",
        "Accuracy against time to first token",
        "Time",
        "Tokens",
        "Gate",
    ]
    assert "an interval that crosses 0 is noise" in drawn[0].caption
    for picture in drawn:
        check_is_drawn(tmp_path / picture.file)
    assert {*files, "comparison"} == set(NAMES)


def test_what_was_not_measured_is_not_drawn(tmp_path: Path, evaluation: Evaluation) -> None:
    nothing = {"ttft_s": None, "total_s": None, "prompt_tokens": None}
    methods = tuple(dataclasses.replace(method, **nothing) for method in evaluation.methods)  # type: ignore[arg-type]
    changed = dataclasses.replace(evaluation, methods=methods, gate=None)
    assert [picture.file for picture in draw_evaluation(changed, tmp_path, "a_")] == ["a_accuracy.png"]
    unscored = tuple(dataclasses.replace(method, scores={}) for method in methods)
    assert draw_evaluation(dataclasses.replace(changed, methods=unscored), tmp_path, "b_") == []
    assert draw_comparison([dataclasses.replace(changed, methods=unscored)] * 2, ["1", "2"], tmp_path, "b_") is None


def test_a_run_that_is_going_on_has_no_intervals(tmp_path: Path, evaluation: Evaluation) -> None:
    folder = write_folder(tmp_path / "running", 20)
    (folder / "summary.json").unlink()
    drawn = draw_evaluation(read_evaluation(folder), tmp_path, "report_")
    assert drawn[0].caption == "Accuracy of each method so far"
    check_is_drawn(tmp_path / drawn[0].file)


def test_side_by_side(tmp_path: Path, evaluation: Evaluation) -> None:
    picture = draw_comparison([evaluation, evaluation], ["1. a", "2. $b"], tmp_path, "report_")
    assert picture is not None and picture.file == "report_comparison.png"
    check_is_drawn(tmp_path / picture.file)


@pytest.mark.parametrize("name", ["$a_{b", "統合\u2028", "\0\n", "x" * 200, "_", "<b>"])
def test_any_name_can_be_drawn(tmp_path: Path, evaluation: Evaluation, name: str) -> None:
    """Warnings of the font, or of mathematics in a name, are errors here."""
    odd = dataclasses.replace(evaluation.methods[0], name=name)
    changed = dataclasses.replace(evaluation, methods=(odd, *evaluation.methods))
    for picture in draw_evaluation(changed, tmp_path, "report_"):
        check_is_drawn(tmp_path / picture.file)
    assert draw_comparison([changed, changed], [f"1. {name}", f"2. {name}"], tmp_path, "report_") is not None


def test_labels_of_the_scatter_do_not_overlap(evaluation: Evaluation) -> None:
    """Eight methods with nearly the same time and score."""
    methods = []
    for number in range(8):
        near = dataclasses.replace(evaluation.methods[1], name=f"method-{number}", ttft_s=0.2 + number / 1e4)
        methods.append(near)
    figure = plots._figure(3.9)
    plots._scatter(figure, [*methods, *evaluation.methods], "accuracy")
    boxes = label_boxes(figure)
    assert len(boxes) == 8 + len(evaluation.methods)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    # The line of vote is at 50%.
    level = figure.axes[0].transData.transform((0, 50))[1]
    assert not [box for box in boxes if box.y0 < level < box.y1]


def label_boxes(figure: Figure) -> list:  # type: ignore[type-arg]
    """Return where the labels of the only axes are, in pixels."""
    figure.draw_without_rendering()
    (axes,) = figure.axes
    return [text.get_window_extent() for text in axes.texts]


@pytest.mark.parametrize("length", [1, 15, 200])
def test_a_legend_stays_in_the_picture(evaluation: Evaluation, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *path, **how: drawn.append(figure))
    draw_comparison([evaluation] * 5, [f"{number}. {'m' * length}" for number in range(5)], Path(), "")
    (figure,) = drawn
    figure.draw_without_rendering()
    extent = figure.legends[0].get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1
    assert extent.y1 <= figure.bbox.y1


def test_long_times_have_a_logarithmic_axis(evaluation: Evaluation) -> None:
    slow = dataclasses.replace(evaluation.methods[0], ttft_s=80.0)
    figure = plots._figure(3.9)
    plots._scatter(figure, [slow, *evaluation.methods[1:]], "accuracy")
    assert figure.axes[0].get_xscale() == "log"
