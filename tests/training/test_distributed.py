"""When a run joins other processes, and with which arguments JAX is asked to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import pytest

from psynth_jax.errors import ConfigError
from psynth_jax.training import distributed
from psynth_jax.training.distributed import start_processes

ROOT = Path(__file__).parents[2]
ALL = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8482", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
LAUNCHERS = [
    {"TPU_WORKER_HOSTNAMES": "a,b"},
    {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]"},
    {"MEGASCALE_COORDINATOR_ADDRESS": "a"},
    {"OMPI_MCA_orte_hnp_uri": "a"},
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every call to JAX, from an environment that names no job."""
    for name in (*ALL, "TPU_PROCESS_ADDRESSES", *(name for named in LAUNCHERS for name in named)):
        monkeypatch.delenv(name, raising=False)
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    return calls


def named(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_one_process_joins_nobody(asked: list[tuple[Any, ...]]) -> None:
    start_processes("auto")
    assert asked == []


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: next(iter(launcher)))
def test_what_a_launcher_started_is_found_by_jax(
    asked: list[tuple[Any, ...]], launcher: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, launcher)
    start_processes("none")
    assert asked == []
    start_processes("auto")
    assert asked == [()]


def test_a_job_named_in_the_environment(asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, ALL)
    start_processes("auto")
    assert asked == [("10.0.0.1:8482", 4, 2)]


@pytest.mark.parametrize("missing", list(ALL))
def test_half_a_job_is_refused(asked: list[tuple[Any, ...]], missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, {name: value for name, value in ALL.items() if name != missing})
    with pytest.raises(ConfigError, match=f"{missing} is not: a job needs all three"):
        start_processes("auto")
    assert asked == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("JAX_NUM_PROCESSES", "x", "JAX_NUM_PROCESSES is 'x'"),
        ("JAX_NUM_PROCESSES", "0", "at least 1"),
        ("JAX_NUM_PROCESSES", "2.5", "whole number"),
        ("JAX_NUM_PROCESSES", "", "whole number"),
        ("JAX_PROCESS_ID", "-1", "whole number"),
        ("JAX_PROCESS_ID", "4", "of 4 processes it must be 0 to 3"),
        ("JAX_COORDINATOR_ADDRESS", "10.0.0.1", "must be host:port"),
        ("JAX_COORDINATOR_ADDRESS", "10.0.0.1:port", "must be host:port"),
        ("JAX_COORDINATOR_ADDRESS", ":8482", "must be host:port"),
        ("PSYNTH_JOIN_SECONDS", "soon", "PSYNTH_JOIN_SECONDS is 'soon'"),
    ],
)
def test_a_job_named_wrongly(
    asked: list[tuple[Any, ...]], name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, ALL | {name: value})
    with pytest.raises(ConfigError, match=said):
        start_processes("auto")
    assert asked == []


def test_slurm_that_counts_in_words(asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, {"SLURM_NTASKS": "two", "SLURM_STEP_NODELIST": "n1"})
    with pytest.raises(ConfigError, match="SLURM_NTASKS is 'two'"):
        start_processes("auto")


def test_what_jax_says_when_it_cannot_join(asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise RuntimeError("UNAVAILABLE: the address\nis in use")

    monkeypatch.setattr(jax.distributed, "initialize", refused)
    named(monkeypatch, ALL)
    with pytest.raises(
        ConfigError, match=r"process 2 of 4, coordinator 10\.0\.0\.1:8482: UNAVAILABLE: the address is in use"
    ):
        start_processes("auto")


def test_processes_that_do_not_come(asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    come = threading.Event()
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: come.wait(60))
    monkeypatch.setattr(distributed, "_LIMIT", 0.2)
    named(monkeypatch, ALL)
    with pytest.raises(ConfigError, match=r"did not come within 0\.2 s: process 2 of 4"):
        start_processes("auto")
    come.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_processes_are_waited_for(tmp_path: Path, number: int) -> None:
    """JAX waits in C++: without a thread for it, the signal would be heard after five minutes, or never."""
    code = "import sys, jax; real = jax.distributed.initialize\n"
    code += "jax.distributed.initialize = lambda *job: (print('waits', flush=True), real(*job))\n"
    code += "from psynth_jax.cli import main; main()"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    command = [sys.executable, "-c", code, "train", str(ROOT / "configs" / "tiny.yaml"), f"workdir={tmp_path}"]
    environment = os.environ | job | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert "Traceback" not in process.stderr.read()


def test_always_asks_jax_and_says_when_there_is_no_job(
    asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    start_processes("always")
    assert asked == [()]

    def nothing() -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing)
    with pytest.raises(ConfigError, match="distributed is always, but JAX finds no job here: coordinator_address"):
        start_processes("always")
