"""What this machine has for a sandbox, and what each back end protects on it."""

from __future__ import annotations

import dataclasses
import os
import platform

from psynth_jax.errors import SandboxError
from psynth_jax.sandbox import landlock, seccomp, selftest, user
from psynth_jax.sandbox.bubblewrap import NAME as BUBBLEWRAP


@dataclasses.dataclass(frozen=True)
class BackendReport:
    """A back end.

    Attributes:
        available: whether it has passed its self-test.
        why: what it lacks, or what went wrong; None where it is available.
        protects: what it protects, and by what.
    """

    available: bool
    why: str | None
    protects: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Report:
    """This machine.

    Attributes:
        chosen: the back end that `auto` takes, or None.
        kernel: its version.
        machine: its architecture.
        landlock_version: of the kernel; 0 without Landlock.
        seccomp: whether there is a filter for the architecture.
        user: who programs run as, or why nobody can.
        backends: a report of each.
    """

    chosen: str | None
    kernel: str
    machine: str
    landlock_version: int
    seccomp: bool
    user: str
    backends: dict[str, BackendReport]


def check() -> Report:
    """Run the self-tests, unless they have been, and describe what there is."""
    backends = {}
    for name in selftest.BACKENDS:
        fault = selftest.fault(name)
        backends[name] = BackendReport(fault is None, fault, _protection(name))
    available = [name for name, report in backends.items() if report.available]
    chosen = available[0] if available else None
    return Report(
        chosen=chosen,
        kernel=os.uname().release,
        machine=platform.machine(),
        landlock_version=landlock.version(),
        seccomp=seccomp.machine() is not None,
        user=_user(),
        backends=backends,
    )


def _user() -> str:
    try:
        chosen = user.choose()
    except SandboxError as failed:
        return str(failed)
    if chosen.dropped:
        return "an unused id, another one for each run"
    return f"{chosen.uid}, without capabilities"


def _protection(name: str) -> dict[str, str]:
    if name == BUBBLEWRAP:
        return {
            "files outside": "absent",
            "their names": "absent",
            "their modes and times": "read-only mounts, seccomp",
            "network": "own namespace, seccomp",
            "signals": "own process ids",
            "tracing": "own process ids, seccomp",
            "background processes": "end with their process ids",
            "kernel interfaces": "seccomp",
        }
    dropped = os.geteuid() == 0
    return {
        "files outside": "Landlock",
        "their names": "can be seen",
        "their modes and times": "not the owner, seccomp" if dropped else "seccomp",
        "network": "seccomp",
        "signals": _signals(dropped),
        "tracing": "Landlock, seccomp",
        "background processes": "killed as a group, which seccomp keeps together",
        "kernel interfaces": "seccomp",
    }


def _signals(dropped: bool) -> str:
    if dropped:
        return "another user"
    if landlock.version() >= landlock.SCOPES_VERSION:
        return "Landlock"
    return f"seccomp: to itself only (Landlock before version {landlock.SCOPES_VERSION})"
