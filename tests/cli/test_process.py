"""The command as a process of its own: programs kept on disk, quiet stderr, a pipe that is closed early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from psynth_jax.cli.setting import without_libtpu_noise
from tests.cli.conftest import PROGRESS

COMMAND = [sys.executable, "-c", "import sys; from psynth_jax.cli import main; main()"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PSYNTH_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_second_run_finds_its_programs_on_disk(model_directory: Path, environment: dict[str, str], tmp_path: Path) -> None:
    def run() -> dict[str, object]:
        options = ["--model", str(model_directory), "--workers", "2", "--worker-tokens", "4", "--max-new-tokens", "4"]
        done = subprocess.run(
            [*COMMAND, "run", "Why?", *options, "--json"], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, PROGRESS.sub("", done.stderr)) == (0, "")
        return json.loads(done.stdout)

    def programs() -> set[str]:
        """The steps: they take long enough to be kept on any machine."""
        return {file.name for file in (tmp_path / "compiled").glob("jit_step*-cache")}

    first, kept = run(), programs()
    assert kept
    second = run()
    assert programs() == kept
    assert (first["answer"], first["workers"]) == (second["answer"], second["workers"])


def test_cache_folder_that_cannot_be_written(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment |= {"PSYNTH_CACHE": str(tmp_path / "file")}
    done = subprocess.run([*COMMAND, "info", "--json"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, PROGRESS.sub("", done.stderr)) == (0, "")
    assert json.loads(done.stdout)["cache"] == str(tmp_path / "file")


def test_a_reader_that_has_left(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [*COMMAND, "info", "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.slow
def test_training_saves_on_sigterm_and_goes_on(environment: dict[str, str], tmp_path: Path) -> None:
    """The config that comes along, with TensorBoard on: it ends by 143 after a save, and the next start ends it."""
    workdir = tmp_path / "run"
    command = [*COMMAND, "train", str(ROOT / "configs" / "tiny.yaml"), f"workdir={workdir}", "train.log_every=1"]
    command += ["data.0.synthetic=16", "evaluation.0.synthetic=2", "batch.shapes=1", "batch.examples=2"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 3/20"):
                process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143
    saved = [int(place.name) for place in (workdir / "checkpoints").iterdir() if place.name.isdecimal()]
    assert len(saved) == 1 and 3 <= saved[0] < 10, "not one that was due"
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["begin"], found["step"], found["reason"]) == (saved[0], 20, "done")
    assert any((workdir / "tensorboard").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_conversion_that_is_ended_leaves_nothing(environment: dict[str, str], tmp_path: Path, number: int) -> None:
    waits = "lambda directory, *_: ((directory / 'half').touch(), print('writes', flush=True), time.sleep(60))"
    code = f"import time; from psynth_jax.convert import convert; convert._write_model = {waits}; "
    code += "from psynth_jax.cli import main; main()"
    command = [sys.executable, "-c", code, "convert", "tiny-random", str(tmp_path / "out" / "made"), "--to", "hf"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writes\n"
        assert len(list((tmp_path / "out").iterdir())) == 1
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert list((tmp_path / "out").iterdir()) == []


class TestLibtpuNoise:
    def write(self) -> None:
        with without_libtpu_noise():
            os.write(2, b"noise\n")
        os.write(2, b"after\n")

    def test_dropped(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
        monkeypatch.setattr(Path, "exists", lambda *_: False)
        self.write()
        assert capfd.readouterr().err == "after\n"

    @pytest.mark.parametrize("reason", ["platforms are chosen", "no libtpu", "a TPU"])
    def test_kept(self, reason: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        """What is written may matter, unless it can only be libtpu's."""
        monkeypatch.setenv("JAX_PLATFORMS", "cpu" if reason == "platforms are chosen" else "")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if reason == "no libtpu" else object())
        monkeypatch.setattr(Path, "exists", lambda *_: reason == "a TPU")
        self.write()
        assert capfd.readouterr().err == "noise\nafter\n"
