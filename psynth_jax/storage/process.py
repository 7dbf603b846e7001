"""Which process wrote a record: enough to tell on the same machine whether it still runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Life = Literal["alive", "gone", "unknown"]


def this_process() -> dict[str, Any]:
    """Return host, pid, and what tells this process from all others: JSON values.

    A pid means something only within one boot and one namespace of processes: pods on one node may have equal host names
    and equal pids.
    """
    return {"host": socket.gethostname(), "pid": os.getpid(), "place": _place(), "began": _began(os.getpid())}


def life_of(record: Mapping[str, Any]) -> Life:
    """Return whether the process of a record runs; "unknown" where this machine cannot tell."""
    here, pid, began = _place(), record.get("pid"), record.get("began")
    if here is None or record.get("place") != here or type(pid) is not int or began is None:
        return "unknown"
    return "alive" if _began(pid) == began else "gone"


def named(record: Mapping[str, Any]) -> str:
    """Return how a message calls the process of a record."""
    shown = f"pid {record.get('pid')} on {record.get('host')}"
    return "".join(letter for letter in shown if letter.isprintable())[:300]


def _place() -> str | None:
    """Return the boot and the namespace in which pids of this process mean something; None: they are not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _began(pid: int) -> int | None:
    """Return when a process began, in ticks of the clock since the boot; None: there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] == "Z":  # it has ended, and waits for its parent
        return None
    return int(fields[19])  # starttime, the 22nd field, counted from the one behind the name
