"""Consoles and environments that are not what one expects: one line, or the answer, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import PROGRESS

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "psynth_jax"]
RUN = ["run", "Why?", "--model", "tiny-random", "--branch", "naïve", "--max-new-tokens", "2"]
NO_HOME = "import pwd, sys; pwd.getpwuid = lambda _: {}[0]; sys.argv[0] = 'psynth'; from psynth_jax.cli import main; main()"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    own = {"PSYNTH_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"JAX_PLATFORMS": "nonsense"}, "JAX_PLATFORMS is 'nonsense'"),
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS is 'cuda'"),
        ({"JAX_ENABLE_X64": "maybe"}, "JAX_ENABLE_X64"),
        ({"JAX_NUM_CPU_DEVICES": "x"}, "jax_num_cpu_devices"),
        ({"JAX_NUM_CPU_DEVICES": "0"}, "JAX_NUM_CPU_DEVICES is '0'"),
        ({"XLA_FLAGS": "--xla_nonsense"}, "XLA_FLAGS is wrong: Unknown flag in XLA_FLAGS: --xla_nonsense"),
        ({"XLA_FLAGS": "nonsense"}, "XLA_FLAGS is wrong: Could not open file"),
    ],
    ids=str,
)
def test_what_jax_does_not_start_with(environment: dict[str, str], variables: dict[str, str], said: str) -> None:
    done = subprocess.run([*COMMAND, "info"], env=environment | variables, capture_output=True, text=True, check=False)
    line = PROGRESS.sub("", done.stderr)
    assert (done.returncode, done.stdout, line.count("\n")) == (2, "", 1)
    assert line.startswith("error: ") and said in line


@pytest.mark.slow
def test_64_bits_are_turned_off(environment: dict[str, str]) -> None:
    command = [*COMMAND, *RUN, "--json"]
    done = subprocess.run(command, env=environment | {"JAX_ENABLE_X64": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["cached_tokens"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_a_console_that_is_not_utf8(environment: dict[str, str], encoding: str) -> None:
    done = subprocess.run(
        [*COMMAND, *RUN], env=environment | {"PYTHONIOENCODING": encoding}, capture_output=True, check=False
    )
    assert done.returncode == 0
    answer, said = done.stdout.decode("latin-1"), done.stderr.decode("latin-1")
    assert answer.endswith("\n") and len(answer) > 2
    assert "\u256d".encode() not in done.stderr and "+-" in said and "naïve" in said.replace("\\xef", "ï")
    as_json = subprocess.run(
        [*COMMAND, *RUN, "--json"], env=environment | {"PYTHONIOENCODING": encoding}, capture_output=True, check=True
    )
    assert json.loads(as_json.stdout.decode("ascii"))["workers"][0]["text"] == "naïve"


def test_neither_home_nor_user_name(environment: dict[str, str]) -> None:
    """As in a container with a user id that nobody has named: the cache is optional."""
    kept = {name: value for name, value in environment.items() if name not in ("HOME", "USER", "LOGNAME", "PSYNTH_CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", NO_HOME, "info", "--json"], env=kept, capture_output=True, text=True, check=False
    )
    assert (done.returncode, PROGRESS.sub("", done.stderr)) == (0, "")
    assert json.loads(done.stdout)["cache"] is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["info", "--json"]], ids=str)
def test_a_disk_that_is_full(environment: dict[str, str], arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert PROGRESS.sub("", done.stderr) == "error: cannot write to standard output: No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_streams_that_are_closed(environment: dict[str, str], closed: str, tmp_path: Path) -> None:
    """What is opened next would take the numbers of closed streams, and what is written to them."""
    target = tmp_path / "made"
    script = f'exec "$@" {closed}'
    command = ["bash", "-c", script, "bash", *COMMAND, "convert", "tiny-random", str(target), "--to", "hf"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr
    assert json.loads((target / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["20", "60"])
def test_a_dumb_and_narrow_terminal(environment: dict[str, str], columns: str) -> None:
    variables = environment | {"TERM": "dumb", "COLUMNS": columns}
    done = subprocess.run([*COMMAND, *RUN], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "…" not in done.stderr and "prompt" in done.stderr and "tokens/s" in done.stderr
