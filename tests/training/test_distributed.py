"""When a run joins other processes, and with which arguments JAX is asked to."""

from __future__ import annotations

from typing import Any

import jax
import pytest

from psynth_jax.errors import ConfigError
from psynth_jax.training.distributed import start_processes

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
