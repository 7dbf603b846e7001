"""Signals end the command at any moment: exit codes, nothing on stderr, nothing swallowed.  In processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import PROGRESS

ROOT = Path(__file__).parents[2]
LONG = ["run", "Why?", "--model", "tiny-random", "--branch", "x", "--max-new-tokens", "4000", "--json"]

# Sends a signal to itself when a module is about to be imported, or when it has been.
AT_AN_IMPORT = """
import os, sys, time, _signal
module, number = sys.argv[1], int(sys.argv[2])
class Sender:
    def find_spec(self, name, *_):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)
            time.sleep(0.01)
sys.meta_path.insert(0, Sender())
from psynth_jax.cli import main
sys.argv = ["psynth", *sys.argv[3:]]
main()
"""

# A library that catches what its optional imports raise, whatever it is.
SWALLOWS = """
import os, sys
sys.argv = ["psynth", *sys.argv[1:]]
from psynth_jax.cli import interrupts, main
from psynth_jax.convert import convert
def write(directory, *_):
    (directory / "half").touch()
    try:
        os.kill(os.getpid(), %d)
        for _ in range(200): __import__("time").sleep(0.01)
    except BaseException:
        print("swallowed", flush=True)
    __import__("time").sleep(20)
convert._write_model = write
main()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PSYNTH_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("typer", signal.SIGINT),
        ("jax", signal.SIGINT),
        ("jax", signal.SIGTERM),
        ("jax", signal.SIGHUP),
        ("transformers", signal.SIGINT),
    ],
)
def test_while_a_module_is_imported(environment: dict[str, str], module: str, number: int) -> None:
    command = [sys.executable, "-c", AT_AN_IMPORT, module, str(int(number)), *LONG]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, PROGRESS.sub("", done.stderr)) == (128 + number, "", "")


@pytest.mark.parametrize("seconds", [0, 0.2, 1, 3])
def test_ctrl_c_after(environment: dict[str, str], seconds: float) -> None:
    """Counted from when Python has started: what happens before that is not ours."""
    code = "import sys; from psynth_jax.cli import main; sys.stderr.write('begins\\n'); sys.stderr.flush(); main()"
    command = [sys.executable, "-c", code, *LONG]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and process.stdout is not None
        assert process.stderr.readline() == "begins\n"
        time.sleep(seconds + 0.01)
        process.send_signal(signal.SIGINT)
        said, out = process.stderr.read(), process.stdout.read()
        assert (process.wait(60), out, PROGRESS.sub("", said)) == (130, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_one_that_a_library_swallows_comes_again(environment: dict[str, str], tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-c", SWALLOWS % number, "convert", "tiny-random", str(tmp_path / "out" / "x"), "--to", "hf"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, PROGRESS.sub("", done.stderr)) == (128 + number, "swallowed\n", "")
    assert list((tmp_path / "out").iterdir()) == []


def test_nohup_keeps_a_command_alive(environment: dict[str, str]) -> None:
    code = "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from psynth_jax.cli import interrupts;"
    code += "interrupts.install(); os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "alive\n"
