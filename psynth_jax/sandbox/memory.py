"""How much memory processes use, from /proc: first quickly and too much, then exactly.

usage               VmRSS + VmSwap + VmPTE        a page counts in each process that has it
shared_out_memory   Pss + SwapPss + VmPTE         a page of n processes counts as 1/n in each
                    + shared pages that nobody has mapped at the moment
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from psynth_jax.sandbox import kernel
from psynth_jax.sandbox.processes import fields, living_thread

_KIBIBYTE = 1024
_MEMORY = (b"VmRSS", b"VmSwap", b"VmPTE")


@dataclasses.dataclass(frozen=True)
class Usage:
    """What processes use together: processes and threads, and bytes of memory."""

    tasks: int
    memory: int


def usage(processes: Sequence[int]) -> Usage:
    """Return what processes use.  Pages that several of them share are counted in each of them."""
    tasks = memory = 0
    for process in processes:
        found = fields(Path(f"/proc/{process}/status"), (b"Threads", *_MEMORY))
        threads = found.pop(b"Threads", 0)
        tasks += threads
        if not found and threads > 1 and (living := living_thread(process)) is not None:
            found = fields(living / "status", _MEMORY)
        memory += sum(found.values()) * _KIBIBYTE
    return Usage(tasks, memory)


def shared_out_memory(processes: Sequence[int], shared: int = 0) -> int | None:
    """Return the bytes of memory, each shared page counted once; None if we may not look.

    Args:
        processes: their ids.
        shared: bytes of memory that they share without a file, mapped at the moment or not.
    """
    memory = mapped = 0
    for thread in _one_thread_for_each_memory(processes):
        try:
            found = fields(thread / "smaps_rollup", (b"Pss", b"SwapPss", b"Pss_Shmem"))
        except PermissionError:
            return None
        mapped += found.pop(b"Pss_Shmem", 0) * _KIBIBYTE
        tables = fields(thread / "status", (b"VmPTE",))
        memory += (sum(found.values()) + sum(tables.values())) * _KIBIBYTE
    return memory + max(0, shared - mapped)


def _one_thread_for_each_memory(processes: Sequence[int]) -> list[Path]:
    """Return a living thread of each process; of those that have one memory, of one only.

    After vfork a child has its parent's memory, not a copy of it.  A thread that has ended has none
    and would seem to have that of every other one that has ended: therefore living threads.
    """
    chosen: list[Path] = []
    for process in processes:
        living = living_thread(process)
        if living is None:
            continue
        if not any(kernel.have_one_memory(int(living.name), int(other.name)) for other in chosen):
            chosen.append(living)
    return chosen
