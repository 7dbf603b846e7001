"""Where numbers go: the file of lines, TensorBoard, and Weights & Biases, for which a module of that name stands in."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from psynth_jax.errors import ConfigError
from psynth_jax.training.config import Logging
from psynth_jax.training.curves import read_curves
from psynth_jax.training.metrics import Metrics

NUMBERS = {"loss": 0.5, "mfu": None, "gradient_norm": math.inf}
WANDB = """
import json, pathlib
class Run:
    def __init__(self, **given): self.file = pathlib.Path(given["dir"], "wandb.jsonl"); self.say(given)
    def say(self, *what):
        with self.file.open("a") as file: file.write(json.dumps(what) + chr(10))
    def log(self, numbers, step): self.say(step, numbers)
    def finish(self): self.say("finished")
init = lambda **given: Run(**given)
"""


def write(workdir: Path, options: Logging, *, here: bool = True) -> None:
    with Metrics(workdir, options) as metrics:
        if here:
            metrics.open({"seed": 3})
        metrics.write(1, NUMBERS)
        metrics.write(2, {"loss": 0.25})


def test_the_file_says_what_is_no_number_by_null(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    write(tmp_path, Logging(tensorboard=False))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = {"step": 1, "loss": 0.5, "mfu": None, "gradient_norm": None}
    assert lines == [{"step": 0, "loss": 1.0}, first, {"step": 2, "loss": 0.25}], "the torn line of a killed run is gone"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_has_the_same(tmp_path: Path) -> None:
    write(tmp_path, Logging())
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert content.count(b"loss") == 2 and b"mfu" not in content and b"gradient_norm" not in content


def test_steps_after_the_checkpoint_are_given_up(tmp_path: Path) -> None:
    """A line of the checkpoint's step ends those that were lost, also when no step follows."""
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, 10)))
    for _ in range(2):
        with Metrics(tmp_path, Logging()) as metrics:
            metrics.open({}, begin=4)
        assert read_curves(tmp_path / "metrics.jsonl")["loss"][0].tolist() == [1, 2, 3, 4]
    assert (tmp_path / "metrics.jsonl").read_text().endswith('{"step": 4}\n')
    assert (tmp_path / "metrics.jsonl").read_text().count('{"step": 4}\n') == 1, "it is told once"


def test_damaged_lines_stay_and_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n\0\0\n[1]\n")
    with Metrics(tmp_path, Logging(tensorboard=False)) as metrics:
        metrics.open({}, begin=0)
        metrics.write(1, {"loss": 1.0})
    assert read_curves(tmp_path / "metrics.jsonl")["loss"][1].tolist() == [1.0]


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match="not a regular file"):
        write(tmp_path, Logging(tensorboard=False))


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    write(tmp_path, Logging(tensorboard=False, wandb_project="p"))
    lines = [json.loads(line) for line in (tmp_path / "wandb.jsonl").read_text().splitlines()]
    begun = {"project": "p", "config": {"seed": 3}, "dir": str(tmp_path)}
    assert lines == [[begun], [1, {"loss": 0.5}], [2, {"loss": 0.25}], ["finished"]]


def test_weights_and_biases_must_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        write(tmp_path, Logging(wandb_project="p"))


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    write(tmp_path, Logging(), here=False)
    assert list(tmp_path.iterdir()) == []
