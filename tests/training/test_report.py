"""The report of a training run: which values count, which pictures there are, and that the page needs nothing else."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from psynth_jax.errors import DataError, InputError
from psynth_jax.training.curves import OTHER, PANELS, read_curves, read_metrics, smoothed
from psynth_jax.training.report import report_train, summarise


def write(workdir: Path, *lines: dict[str, Any], tail: str = "") -> Path:
    workdir.mkdir(exist_ok=True)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return workdir


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A run of 80 steps with everything that a trainer logs, and a number that no picture is made for."""
    lines: list[dict[str, Any]] = []
    for step in range(1, 81):
        losses = {
            "loss": 1 + 1 / step,
            "cross_entropy": 1.0,
            **({"loss/<flan>": 2 + 1 / step} if step % 2 else {"loss/chat": 1.0}),
        }
        rates = {f"{kind}_tokens_per_s": rate for kind, rate in (("branch", 100), ("prompt", 10), ("target", 5))}
        device = {"step_seconds": 2.0, "mfu": 0.3, "memory_bytes": 2**31}
        lines.append({"step": step, **losses, "learning_rate": 1e-3, "gradient_norm": 0.5, **rates, **device, "skipped": 4})
        lines[-1]["own_$number"] = step % 3
        if step % 40 == 0:
            lines.append({"step": step, "eval_loss": 2 - step / 80, "eval_distillation": 0.1})
    write(tmp_path / "run 1", *lines)
    (tmp_path / "run 1" / "config.json").write_text('{"seed": 7, "train": {"steps": 80, "note": "<b>"}, "mesh": {}}')
    return tmp_path / "run 1"


class TestCurves:
    def test_a_smaller_step_ends_the_larger_ones_before_it(self, tmp_path: Path) -> None:
        """Steps 2 and 3 were done, the run died, and went on from the checkpoint of step 1."""
        first = [{"step": step, "loss": 9.0 - step, "only": 1} for step in (1, 2, 3)]
        first.insert(2, {"step": 2, "eval_loss": 7.0})
        second = [{"step": 2, "loss": 5.0}]
        curves = read_curves(write(tmp_path / "w", *first, *second) / "metrics.jsonl")
        assert {name: (steps.tolist(), values.tolist()) for name, (steps, values) in curves.items()} == {
            "loss": ([1, 2], [8, 5]),
            "only": ([1], [1]),
        }
        evaluated = {"step": 2, "eval_loss": 4.0}
        curves = read_curves(write(tmp_path / "w", *first, *second, evaluated) / "metrics.jsonl")
        assert curves["eval_loss"][1].tolist() == [4] and curves["loss"][1].tolist() == [8, 5]

    def test_a_lost_attempt_is_no_part_of_the_report(self, tmp_path: Path) -> None:
        lost = [{"step": step, "loss": 100.0} for step in range(1, 33)]
        found = report_train(write(tmp_path / "w", *lost, {"step": 4}, {"step": 5, "loss": 2.0}))
        assert (found["steps"], found["final_loss"]) == (5, 2.0)

    def test_torn_line_and_what_is_no_number(self, tmp_path: Path) -> None:
        lines = [{"step": 1, "loss": 2.0, "mfu": None, "note": "warm", "done": True}, {"step": 2, "loss": float("nan")}]
        curves = read_curves(write(tmp_path / "w", *lines, tail='{"step": 3, "lo') / "metrics.jsonl")
        assert list(curves) == ["loss"] and curves["loss"][0].tolist() == [1]

    def test_smoothing(self) -> None:
        np.testing.assert_allclose(smoothed(np.full(200, 3.0)), 3.0)
        noisy = np.random.default_rng(0).normal(5, 1, 1000)
        found = smoothed(noisy)
        assert found[0] == pytest.approx(noisy[0])  # not drawn towards zero
        assert abs(found[100:].mean() - 5) < 0.1 and found[100:].std() < 0.3
        few = np.array([1.0, 5.0, 2.0])
        np.testing.assert_allclose(smoothed(few), few)

    @pytest.mark.parametrize(
        "line",
        [
            b"\0\0\0\0",
            b'{"step": 2, ',
            b'{"step": 2, "loss": 1.0}{"step"',
            b'\xff\xfe{"step": 2}',
            b'{"loss": 2}',
            b"[1]",
            b"3",
            b'{"step": "2", "loss": 1}',
            b'{"step": 2.5, "loss": 1}',
            b'{"step": true, "loss": 1}',
            b'{"step": -1, "loss": 1}',
            b'{"step": 1e400, "loss": 1}',
            b'{"step": ' + b"9" * 5000 + b"}",
            b"[" * 100_000,
        ],
    )
    def test_damaged_lines_are_counted_and_left_out(self, tmp_path: Path, line: bytes) -> None:
        file = tmp_path / "metrics.jsonl"
        file.write_bytes(b'{"step": 1, "loss": 2}\n' + line + b'\n{"step": 3, "loss": 1}\n')
        curves, damaged = read_metrics(file)
        assert damaged == 1 and curves["loss"][0].tolist() == [1, 3]
        found = report_train(tmp_path)
        assert found["damaged_lines"] == 1 and found["steps"] == 3
        assert "damaged lines of metrics, left out" in Path(found["page"]).read_text()

    def test_values_that_are_no_numbers_are_left_out(self, tmp_path: Path) -> None:
        odd = b'{"step": 1, "loss": 2, "a": 1e999, "b": ' + b"9" * 400 + b', "c": [1], "d\\ud800": 1, "e\\n": 1, "": 1}\n'
        (tmp_path / "metrics.jsonl").write_bytes(odd)
        curves, damaged = read_metrics(tmp_path / "metrics.jsonl")
        assert list(curves) == ["loss"] and damaged == 0
        report_train(tmp_path)

    @pytest.mark.parametrize("content", ["", '{"step": 1}\n', "[1]\n"])
    def test_no_step(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "metrics.jsonl").write_text(content)
        with pytest.raises(DataError, match="holds no step"):
            read_curves(tmp_path / "metrics.jsonl")

    def test_what_is_no_regular_file_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "metrics.jsonl")
        with pytest.raises(InputError, match="not a regular file"):
            read_curves(tmp_path / "metrics.jsonl")
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(InputError, match="cannot read"):
            read_curves(tmp_path / "metrics.jsonl")


class TestSummary:
    def test_by_hand(self, workdir: Path) -> None:
        found = summarise(read_curves(workdir / "metrics.jsonl"))
        assert found.pop("final_loss") == pytest.approx(np.mean([1 + 1 / step for step in range(73, 81)]))
        tasks = found.pop("final_loss_by_task")
        assert tasks == {"chat": 1.0, "<flan>": pytest.approx(np.mean([2 + 1 / step for step in (73, 75, 77, 79)]))}
        assert found == {
            "steps": 80,
            "first_loss": 2.0,
            "final_eval_loss": 1.0,
            "best_eval_loss": 1.0,
            "best_step": 80,
            "branch_tokens": 80 * 2 * 100,
            "prompt_tokens": 80 * 2 * 10,
            "target_tokens": 80 * 2 * 5,
            "step_seconds_in_all": 160.0,
            "most_memory_bytes": 2**31,
            "skipped": 4,
        }

    def test_best_is_not_always_last(self, tmp_path: Path) -> None:
        lines = [{"step": step, "eval_loss": loss} for step, loss in ((10, 2.0), (20, 1.0), (30, 1.5))]
        found = summarise(read_curves(write(tmp_path / "w", *lines) / "metrics.jsonl"))
        assert found == {"steps": 30, "final_eval_loss": 1.5, "best_eval_loss": 1.0, "best_step": 20}


@pytest.fixture
def page(workdir: Path) -> str:
    return Path(report_train(workdir)["page"]).read_text()


class TestPage:
    def test_holds_every_picture(self, workdir: Path) -> None:
        found = report_train(workdir)
        folder = workdir / "report"
        pictures = {OTHER, *(panel.file for panel in PANELS)}
        assert {path.name for path in folder.iterdir()} == pictures | {"report.html"}
        assert {Path(path).name for path in found["pictures"]} == pictures and found["page"] == str(folder / "report.html")
        page = (folder / "report.html").read_text()
        inside = [base64.b64decode(source) for source in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
        assert sorted(inside) == sorted((folder / name).read_bytes() for name in pictures)
        loss = matplotlib.image.imread(folder / "loss.png")
        assert loss[0, 0, 3] == 0 and loss[..., 3].max() == 1  # curves on no ground of their own

    def test_needs_nothing_else(self, page: str) -> None:
        assert not re.findall(r"https?:|<script|<link|@import|url\(", page)
        assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', page))
        assert "prefers-color-scheme: dark" in page

    def test_says_what_was_done(self, page: str) -> None:
        for said in (
            "<h1>Training run run 1</h1>",
            "<span>time in steps</span><b>3 min</b>",
            "<span>branch tokens</span><b>16 k</b>",
            "<span>memory, at most</span><b>2.0 GiB</b>",
            "<th>train.steps</th><td>80</td>",
            "<th>seed</th><td>7</td>",
            "<th>&lt;flan&gt;</th><td>2.01",
            "<th>train.note</th><td>&lt;b&gt;</td>",
        ):
            assert said in page

    def test_has_pictures_of_what_was_logged_only(self, tmp_path: Path) -> None:
        workdir = write(tmp_path / "w", {"step": 1, "loss": 2.0})
        found = report_train(workdir, tmp_path / "elsewhere" / "page")
        assert found["pictures"] == [str(tmp_path / "elsewhere" / "page" / "loss.png")]
        assert [path.name for path in workdir.iterdir()] == ["metrics.jsonl"]
        assert "<h2>Config</h2>" not in Path(found["page"]).read_text()

    def test_replaces_a_report_and_nothing_else(self, workdir: Path) -> None:
        report_train(workdir)
        write(workdir, {"step": 1, "loss": 2.0})
        report_train(workdir)
        assert sorted(path.name for path in (workdir / "report").iterdir()) == ["loss.png", "report.html"]
        (workdir / "report" / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match=r"not a training report: it has notes\.txt"):
            report_train(workdir)
        assert (workdir / "report" / "notes.txt").read_text() == "mine"

    def test_no_workdir(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"not the workdir of a training run: it has no metrics\.jsonl"):
            report_train(tmp_path / "absent")
        assert list(tmp_path.iterdir()) == []

    def test_odd_config(self, tmp_path: Path) -> None:
        """Half of a surrogate pair cannot be written as UTF-8."""
        workdir = write(tmp_path / "w", {"step": 1, "loss": 2.0})
        (workdir / "config.json").write_text('{"a": "\\ud800", "b": NaN}')
        report_train(workdir)
        (workdir / "config.json").unlink()
        os.mkfifo(workdir / "config.json")
        with pytest.raises(InputError, match="not a regular file"):
            report_train(workdir)

    def test_a_folder_that_cannot_be_written(self, workdir: Path) -> None:
        with pytest.raises(DataError, match="cannot write /proc/report"):
            report_train(workdir, "/proc/report")

    @pytest.mark.parametrize("config", ["{", "[]", "[" * 100_000])
    def test_damaged_config(self, workdir: Path, config: str) -> None:
        (workdir / "config.json").write_text(config)
        with pytest.raises(InputError, match=r"config\.json"):
            report_train(workdir)
        assert not (workdir / "report").exists()
