"""`psynth train` and `psynth export` as a user runs them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

import psynth_jax as ps
from psynth_jax.cli.train import _watch
from psynth_jax.training.config import read_config
from tests.cli.conftest import Command, Refused

CONFIG = """
model: tiny-random
data: [{synthetic: 8}]
evaluation: [{synthetic: 4}]
trainable: {rank: 4}
optimizer: {schedule: constant}
batch: {tokens: 16384, examples: 4, shapes: 1}
train: {steps: 2, evaluate_every: 1, log_every: 1}
checkpoint: {every: 1}
logging: {tensorboard: false}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG + f"workdir: {tmp_path / 'run'}\n")
    return path


def test_trains_continues_and_exports(psynth: Command, file: Path, tmp_path: Path) -> None:
    first = psynth("train", file, "--json")
    assert json.loads(first.out) == {
        "workdir": str(tmp_path / "run"),
        "begin": 0,
        "step": 2,
        "reason": "done",
        "adapter": str(tmp_path / "run" / "adapter"),
    }
    assert "step 1/2" in first.err and "evaluation loss" in first.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert [line["step"] for line in lines if "eval_loss" in line] == [1, 2]

    second = psynth("train", file, "train.steps=3", "--json")
    found = json.loads(second.out)
    assert (found["begin"], found["step"]) == (2, 3)
    assert "continuing" in second.err and "after step 2" in second.err

    psynth("export", tmp_path / "run", "--into", tmp_path / "first", "--step", 1)
    psynth("export", tmp_path / "run", "--into", tmp_path / "last")
    model = ps.load_model("tiny-random")
    ups = [ps.load_adapter(tmp_path / name, model).lora.up["q"] for name in ("first", "last", "run/adapter")]  # type: ignore[union-attr]
    assert (ups[1] == ups[2]).all() and (ups[0] != ups[1]).any()


def test_what_is_wrong_is_one_line(refused: Refused, file: Path, tmp_path: Path) -> None:
    assert "train.step: Extra inputs" in refused("train", file, "train.step=3")
    assert "cannot read" in refused("train", tmp_path / "none.yaml")
    assert "there are no examples in" in refused("train", file, f"data.0.path={tmp_path}", "data.0.synthetic=null")
    assert "cannot read" in refused("export", tmp_path, "--into", tmp_path / "out")


def test_a_terminal_sees_a_bar(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far it is, the newest numbers in place of the last, and a line for each evaluation."""
    screen = io.StringIO()
    monkeypatch.setattr(
        sys.modules[_watch.__module__], "console", Console(file=screen, force_terminal=True, width=120, color_system=None)
    )
    numbers = {f"{kind}_tokens_per_s": 1000.0 for kind in ("branch", "prompt", "target")}
    numbers |= {"loss": 0.75, "step_seconds": 0.5, "mfu": 0.125}
    with _watch(read_config(file)) as on_step:
        on_step(1, numbers)
        on_step(1, {"eval_loss": 0.625})
        on_step(2, numbers | {"loss": 0.5})
    shown = screen.getvalue()
    assert "step 1  evaluation loss 0.6250" in shown
    last = shown.split("\r")[-1] if "\r" in shown else shown
    assert "2/2" in last and "loss 0.5000  3,000 tokens/s  0.50 s  MFU 12.5%" in last
