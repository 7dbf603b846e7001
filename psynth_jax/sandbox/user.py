"""The user that a program runs as.

Root drops to a user id that nobody has: it owns no file, and no other process is of it, so that
limits that the kernel counts by user count this run alone.  Another user stays who he is, without
capabilities.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import secrets
from pathlib import Path

from psynth_jax.errors import SandboxError
from psynth_jax.sandbox import kernel

# Ranges that no distribution, container manager or systemd hands out, the larger first.  A user
# namespace often maps 65536 ids only.
_UNUSED_RANGES = ((1_879_048_192, 2_147_483_647), (60_578, 61_183))
_TRIES = 64
_ROOM = 256  # tasks


@dataclasses.dataclass(frozen=True)
class User:
    """Who a program runs as.

    Attributes:
        uid: its user id and group id.
        dropped: whether they are others than this process has.
        capabilities: mask of those that it keeps.
    """

    uid: int
    dropped: bool
    capabilities: int = 0


def choose(readable: str | None = None) -> User:
    """Choose the user of a run.

    Args:
        readable: a path that only some users can read and that the program needs, if there is one.
            A dropped user keeps the capability to read everything for it; what it may open must
            be limited otherwise.

    Raises `SandboxError` where this process is root and cannot drop, or cannot grant this.
    """
    if os.geteuid() != 0:
        return User(os.geteuid(), dropped=False)
    needed = {
        "CAP_CHOWN": kernel.CAP_CHOWN,
        "CAP_DAC_OVERRIDE": kernel.CAP_DAC_OVERRIDE,
        "CAP_KILL": kernel.CAP_KILL,
        "CAP_SETGID": kernel.CAP_SETGID,
        "CAP_SETUID": kernel.CAP_SETUID,
    }
    missing = [name for name, bit in needed.items() if not kernel.has_capabilities(bit)]
    if missing:
        names = ", ".join(missing)
        raise SandboxError(f"root without {names} cannot become another user; start as one")
    if readable is None:
        return User(_unused_id(), dropped=True)
    # And to look at a process with a capability, the supervisor needs one.
    if not kernel.has_capabilities(kernel.CAP_DAC_READ_SEARCH, kernel.CAP_SYS_PTRACE):
        right = "install Python where everybody can"
        raise SandboxError(f"another user cannot read {readable}; {right}")
    return User(_unused_id(), dropped=True, capabilities=1 << kernel.CAP_DAC_READ_SEARCH)


def become(user: User) -> None:
    """Make this process the user, without other groups and capabilities.  There is no way back."""
    if user.dropped:
        os.setgroups([])
        if user.capabilities:
            kernel.keep_capabilities_on_setuid()
        os.setresgid(user.uid, user.uid, user.uid)
        os.setresuid(user.uid, user.uid, user.uid)
    kernel.set_capabilities(user.capabilities)


def tasks_beside(chosen: User) -> int:
    """Return how many tasks the kernel's limit must leave to other processes of a run's user.

    A dropped user has none.  Another one has those that there are now, and may start more while the
    program runs: other runs, perhaps.  Between two looks of the supervisor a program can use them.
    """
    if chosen.dropped:
        return 0
    return tasks(chosen.uid) + _ROOM


def tasks(uid: int) -> int:
    """Count the processes and threads of a user."""
    count = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if entry.stat().st_uid == uid:
                count += len(list(Path(entry.path, "task").iterdir()))
        except OSError:  # it has ended
            continue
    return count


def _unused_id() -> int:
    """Draw an id that is mapped here, has no name and no process."""
    mapped = _mapped_ids("uid") & _mapped_ids("gid")
    for first, last in _UNUSED_RANGES:
        for _ in range(_TRIES):
            drawn = first + secrets.randbelow(last - first)
            inside = any(start <= drawn < end for start, end in mapped)
            if inside and not _has_name(drawn) and tasks(drawn) == 0:
                return drawn
    raise SandboxError("no unused user id is mapped here; map 60578 to 61183 into the container")


def _mapped_ids(kind: str) -> set[tuple[int, int]]:
    ranges = set()
    for line in Path(f"/proc/self/{kind}_map").read_text().splitlines():
        start, _, count = (int(word) for word in line.split())
        ranges.add((start, start + count))
    return ranges


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
