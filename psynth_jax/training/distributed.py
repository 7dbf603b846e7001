"""Several hosts: JAX's own multi-controller runtime, started where a cluster is detected.

SLURM, Open MPI, GKE                        JAX finds coordinator, processes and its own number by itself
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID      anything else
a TPU VM whose environment says nothing     "always" has JAX ask the machine's metadata; launch/tpu_worker.sh does so itself
"""

from __future__ import annotations

import os
from typing import Literal

import jax

from psynth_jax.errors import ConfigError

_NUMBERS = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start_processes(wanted: Literal["auto", "always", "none"]) -> None:
    """Join the other processes of a job: if the environment names one, or always, or never.

    Raises `ConfigError` when the environment describes a job by half, or "always" finds none.
    """
    if wanted == "none" or jax.distributed.is_initialized():
        return
    named = [name for name in _NUMBERS if name in os.environ]
    if named:
        missing = [name for name in ("JAX_COORDINATOR_ADDRESS", *_NUMBERS) if name not in os.environ]
        if missing:
            raise ConfigError(f"{named[0]} is set, but {', '.join(missing)} is not: a job needs all three")
        count, number = (int(os.environ[name]) for name in _NUMBERS)
        jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], count, number)
    elif wanted == "always" or _in_a_job():
        try:
            jax.distributed.initialize()
        except ValueError as error:  # what JAX raises where it finds no job
            raise ConfigError(f"distributed is {wanted}, but JAX finds no job here: {error}") from None


def _in_a_job() -> bool:
    """Whether a launcher that JAX knows has started more processes than this one."""
    several_hosts = any("," in os.environ.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in os.environ
    others = "MEGASCALE_COORDINATOR_ADDRESS" in os.environ or "OMPI_MCA_orte_hnp_uri" in os.environ
    return several_hosts or slurm or others
