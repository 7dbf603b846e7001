"""`psynth train` in a process of its own, and what Ctrl-C, a closed terminal, and a second run in the folder do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "from psynth_jax.cli import main; main()"]
ROOT = Path(__file__).parents[2]
CONFIG = """
model: tiny-random
data: [{synthetic: 8}]
trainable: {rank: 4}
batch: {tokens: 16384, examples: 2, shapes: 1}
train: {steps: 100000, log_every: 1}
checkpoint: {every: 100000}
logging: {tensorboard: false}
"""


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def running(tmp_path: Path, workdir: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that has done its second step and would go on for ever."""
    (tmp_path / "run.yaml").write_text(CONFIG + f"workdir: {workdir}\n")
    environment = {**os.environ, "PSYNTH_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [*COMMAND, "train", str(tmp_path / "run.yaml")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if line.startswith("step 2/"):
                    break
            assert said[-1].startswith("step 2/"), "".join(said)
            assert any(line.startswith("compiling the train step for 2 examples of up to") for line in said)
            assert any(line.startswith("compiled the train step for") for line in said)
            yield process
        finally:
            process.kill()


def checkpoints(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_saves_what_was_done(running: subprocess.Popen[str], workdir: Path, number: int, code: int) -> None:
    running.send_signal(number)
    _, said = running.communicate(timeout=300)
    assert running.returncode == code, said
    assert ("saving after this step, again to stop at once\n" in said) == (number == signal.SIGINT)
    (step,) = checkpoints(workdir)
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert f"{word}: saved after step {step}, the same command continues" in said
    assert "Traceback" not in said and (workdir / "adapter").is_dir()


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(
    running: subprocess.Popen[str], workdir: Path, tmp_path: Path
) -> None:
    command = [*COMMAND, "train", str(tmp_path / "run.yaml"), "train.steps=1"]
    environment = {**os.environ, "PSYNTH_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def second() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)

    refused = second()
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: another run (pid {running.pid} on ")
    assert refused.stderr.endswith(f" works in {workdir}\n") and refused.stderr.count("\n") == 1
    running.kill()
    running.wait()
    assert second().returncode == 0
