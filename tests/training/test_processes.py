"""Runs in processes of their own: two that train together, and one that is killed again and again."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.training.config import TrainConfig
from tests.processes import ROOT, run_two
from tests.training.codes import codes, distance, losses, next_gradient, start
from tests.training.examples import config

pytestmark = pytest.mark.slow

MESH = "data=2,fsdp=2,branch=2"
KILLS = 10


def run_config(workdir: object, steps: int = 6) -> TrainConfig:
    return config(
        workdir, mesh=MESH, batch={"tokens": 8192, "examples": 8}, train={"steps": steps}, checkpoint={"every": 3000}
    )


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Gradients of the first step to 1e-6 of their norm, six losses to 1e-5."""
    there, here = tmp_path / "two", tmp_path / "one"
    there.mkdir()
    assert run_two("tests.training.one_of_two_processes", str(there)) == ["6 done"] * 2
    model = ps.load_model("tiny-random", mesh=ps.make_mesh(MESH), layers="stacked")
    trainer = start(run_config(here), model, codes(model))
    with np.load(there / "gradient.npz") as found:
        assert distance([found[name] for name in found.files], next_gradient(trainer)) < 1e-6
    trainer.run()
    assert losses(there) == pytest.approx(losses(here), rel=1e-5)
    loaded = ps.ParallelSynthesis(model, adapter=there / "adapter").adapter
    assert loaded.lora is not None and loaded.lora.rank == 16


@pytest.mark.parametrize(("told", "name"), [("0", "SIGTERM"), ("1", "SIGTERM"), ("1", "SIGINT")])
def test_told_to_end_both_save_after_the_same_step(tmp_path: Path, told: str, name: str) -> None:
    """Ctrl-C in one of them is SIGTERM to the other."""
    steps = 3000
    first, second = run_two("tests.training.one_of_two_processes", str(tmp_path), str(steps), told, name)
    (step, reason), (other_step, other_reason) = first.split(), second.split()
    assert step == other_step and 2 < int(step) < steps
    assert reason == "terminated" and other_reason == ("interrupted" if name == "SIGINT" else "terminated")
    model = ps.load_model("tiny-random", mesh=ps.make_mesh(MESH), layers="stacked")
    assert start(run_config(tmp_path, steps), model, codes(model)).step == int(step)


def test_killed_at_any_moment_it_goes_on_from_a_whole_checkpoint(tmp_path: Path) -> None:
    """SIGKILL, mostly in the middle of a save: this run does little else."""
    random, known = Random(0), 0
    folders = [str(tmp_path / name) for name in ("run", "programs")]
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.killed", *folders]
    for _ in range(KILLS):
        with (
            (tmp_path / "stderr").open("w") as said,
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True) as process,
        ):
            assert process.stdout is not None
            try:
                begin = process.stdout.readline().split()
                assert begin[:1] == ["begin"], (tmp_path / "stderr").read_text()[-3000:]
                assert int(begin[1]) >= known, "a checkpoint that was whole is gone"
                known = int(begin[1])
                step = 0
                while step < known + 3:
                    step = int(process.stdout.readline().split()[1])
                time.sleep(random.uniform(0, 0.3))
            finally:
                process.kill()
        known = max(known, step - 2)  # its save had to end before the next one began
    assert known >= KILLS  # how many steps more a run gets done depends on the machine


def test_a_disk_that_fills_up_while_arrays_are_written(tmp_path: Path) -> None:
    """What Orbax writes in the background fails: the run says so, and which checkpoint is whole."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.full_disk", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "a checkpoint could not be written" in done.stdout, done.stderr[-3000:]
    assert "the last whole one is step 2" in done.stdout
    model = ps.load_model("tiny-random", layers="stacked")
    assert start(config(tmp_path, trainable={"rank": 64}), model, codes(model)).step == 2
