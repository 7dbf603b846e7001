"""`psynth train` and `psynth export` as a user runs them."""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

import psynth_jax as ps
from psynth_jax.cli import train_view
from psynth_jax.cli.train import _watch
from psynth_jax.training import start
from psynth_jax.training.config import read_config
from psynth_jax.training.lock import working_in
from psynth_jax.training.preemption import SAVING
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


@pytest.mark.slow
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
    for said in ("compiling the train step for 4 examples", "compiled the train step for 4 examples"):
        assert said in first.err
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
    assert "optimizer.clip: Input should be a finite number" in refused("train", file, "optimizer.clip=.inf")
    assert "cannot be written" in refused("train", file, "workdir=/proc/run")
    assert not (tmp_path / "run").exists(), "nothing is left of a start that was refused"


def test_what_needs_no_model_is_found_before_it_is_loaded(
    psynth: Command, refused: Refused, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        psynth("train", file, "train.stop_at=1")
        .err.splitlines()[-1]
        .startswith("stopped after step 1, as train.stop_at says; the adapter is in ")
    )

    def loads(*_: object) -> None:
        pytest.fail("the model is loaded")

    monkeypatch.setattr(sys.modules[_watch.__module__], "load", loads)
    monkeypatch.setattr(start, "load_tasks", loads)
    run, out = tmp_path / "run", ("--into", tmp_path / "out")
    assert "no checkpoint '99'; there are: 1" in refused("export", run, *out, "--step", 99)
    assert "step must be latest, best or a whole number, not 'x'" in refused("export", run, *out, "--step", "x")
    assert "float99" in refused("export", run, *out, "--dtype", "float99")
    assert "seed is 3, it was 0" in refused("train", file, "seed=3")
    assert "no such directory: ./none" in refused("train", file, "trainable.start=./none", f"workdir={out[1]}")
    (run / "checkpoints" / "1" / "state" / "_METADATA").write_text("{")
    for command in (("train", file), ("export", run, *out)):
        said = refused(*command)
        assert "checkpoint 1 cannot be read: state/_METADATA has 1 bytes" in said and "no other one is whole" in said
    assert psynth("report", "train", run).code == 0


@pytest.mark.slow
def test_an_export_of_a_run_at_work(psynth: Command, refused: Refused, file: Path, tmp_path: Path) -> None:
    """And of one whose metrics are damaged, which is said; a second run in its folder is refused."""
    psynth("train", file)
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b"\0\0\n")
    with working_in(tmp_path / "run"):
        done = psynth("export", tmp_path / "run", "--into", tmp_path / "out")
        assert done.code == 0 and "1 damaged lines are left out" in done.err
        assert psynth("report", "train", tmp_path / "run", "--json").json["damaged_lines"] == 1
        assert "another run (pid " in refused("train", file)


def test_a_terminal_sees_a_bar(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far it is, the newest numbers in place of the last, and a line for each evaluation."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(sys.modules[_watch.__module__], "console", console)
    numbers = {f"{kind}_tokens_per_s": 1000.0 for kind in ("branch", "prompt", "target")}
    numbers |= {"loss": 0.75, "step_seconds": 0.5, "mfu": 0.125}
    with _watch(read_config(file)) as on_step:
        on_step.say("compiling [x] ...")
        on_step.say("compiled [x] in 1.0 s")
        on_step(1, numbers)
        on_step.say(SAVING)
        on_step(1, {"eval_loss": 0.625})
        on_step(2, numbers | {"loss": 0.5})
    shown = screen.getvalue()
    assert "compiling [x] ..." in shown
    assert "compiled [x] in 1.0 s\n" in shown and f"{SAVING}\n" in shown
    assert "step 1  evaluation loss 0.6250" in shown
    last = shown.split("\r")[-1] if "\r" in shown else shown
    assert "2/2" in last and "loss 0.5000  3,000 tokens/s  0.50 s  MFU 12.5%" in last


def test_what_takes_long_is_not_silent(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe a line is repeated, with how long it has taken."""
    heard = threading.Event()

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            if "compiling ... " in text:
                heard.set()
            return super().write(text)

    monkeypatch.setattr(sys.modules[_watch.__module__], "console", Console(file=Screen(), width=120))
    monkeypatch.setattr(train_view, "FIRST_REMINDER", 0.01)
    with _watch(read_config(file)) as on_step:
        on_step.say("compiling ...")
        assert heard.wait(60)


def test_a_terminal_that_is_gone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on to its save."""

    tried = []

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            tried.append(text)
            raise OSError(5, "Input/output error")

    for terminal in (False, True):
        console = Console(file=Gone(), width=120, force_terminal=terminal)
        monkeypatch.setattr(sys.modules[_watch.__module__], "console", console)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with _watch(read_config(file)) as on_step:
            on_step.say("compiling ...")
            on_step(1, {"eval_loss": 1.0})
        assert tried, "nothing was shown: the terminal was not missed"
        tried.clear()
