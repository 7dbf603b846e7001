"""Several hosts: JAX's own multi-controller runtime, started where a cluster is detected.

SLURM, Open MPI, GKE                        JAX finds coordinator, processes and its own number by itself
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID      anything else
a TPU VM whose environment says nothing     "always" has JAX ask the machine's metadata; launch/tpu_worker.sh does so itself

JAX waits for the other processes in C++, deaf to signals, and ends the process when nobody comes.  So it waits in a
thread, and this one listens and has a time limit: PSYNTH_JOIN_SECONDS, 240 if not set.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Literal

import jax

from psynth_jax.errors import ConfigError

JOINING = "psynth-joining"  # name of the thread; one that never ends keeps a process from ending in order
_NUMBERS = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_LIMIT, _LONGEST = 240.0, 290.0  # seconds; JAX itself gives up after 300, and takes the process with it
_LISTEN_SECONDS = 0.1


def start_processes(wanted: Literal["auto", "always", "none"]) -> None:
    """Join the other processes of a job: if the environment names one, or always, or never.

    Raises `ConfigError` when the environment describes a job by half or wrongly, when "always" finds none, or when the other
    processes do not come.
    """
    if wanted == "none" or jax.distributed.is_initialized():
        return
    named = [name for name in _NUMBERS if name in os.environ]
    if named:
        _join(*_named_job(named[0]))
    elif wanted == "always" or _in_a_job():
        try:
            _join()
        except (ValueError, TypeError) as error:  # what JAX raises where it finds no job
            raise ConfigError(f"distributed is {wanted}, but JAX finds no job here: {error}") from None


def _named_job(named: str) -> tuple[str, int, int]:
    """Return address, count and own number as the environment has them."""
    missing = [name for name in (_ADDRESS, *_NUMBERS) if name not in os.environ]
    if missing:
        raise ConfigError(f"{named} is set, but {', '.join(missing)} is not: a job needs all three")
    address = os.environ[_ADDRESS]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{_ADDRESS} is {address!r}; it must be host:port, such as 10.0.0.1:8476")
    count, number = _whole(_NUMBERS[0], least=1), _whole(_NUMBERS[1], least=0)
    if number >= count:
        raise ConfigError(f"JAX_PROCESS_ID is {number}; of {count} processes it must be 0 to {count - 1}")
    return address, count, number


def _whole(name: str, least: int) -> int:
    """Return a variable of the environment as a number.  Raises `ConfigError` for what is none, or too small."""
    text = os.environ[name].strip()
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise ConfigError(f"{name} is {os.environ[name]!r}; it must be a whole number of at least {least}")
    return int(text)


def _join(*job: str | int) -> None:
    """Have JAX join a job in a thread of its own, and wait: for it, for a signal, or for the end of the time."""
    limit = min(_whole("PSYNTH_JOIN_SECONDS", least=1), _LONGEST) if "PSYNTH_JOIN_SECONDS" in os.environ else _LIMIT
    failed: list[Exception] = []

    def join() -> None:
        try:
            jax.distributed.initialize(*job)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001  handed to the thread that waits
            failed.append(error)

    thread = threading.Thread(target=join, name=JOINING, daemon=True)
    thread.start()
    end = time.monotonic() + limit
    while thread.is_alive() and time.monotonic() < end:
        thread.join(_LISTEN_SECONDS)
    if thread.is_alive():
        raise ConfigError(
            f"the other processes of the job did not come within {limit:g} s: {_described(job)}; are all of them started, "
            "and can they reach that address?"
        )
    if not failed:
        return
    if isinstance(failed[0], RuntimeError | OSError):
        raise ConfigError(f"cannot join {_described(job)}: {' '.join(str(failed[0]).split())[:300]}")
    raise failed[0]


def _described(job: tuple[str | int, ...]) -> str:
    if not job:
        return "the job that JAX found"
    address, count, number = job
    return f"process {number} of {count}, coordinator {address}"


def _in_a_job() -> bool:
    """Whether a launcher that JAX knows has started more processes than this one."""
    several_hosts = any("," in os.environ.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    slurm = "SLURM_STEP_NODELIST" in os.environ and "SLURM_NTASKS" in os.environ and _whole("SLURM_NTASKS", least=1) > 1
    others = "MEGASCALE_COORDINATOR_ADDRESS" in os.environ or "OMPI_MCA_orte_hnp_uri" in os.environ
    return several_hosts or slurm or others
