"""The processes of a run and their threads, from /proc.

The supervisor is the ancestor of them all: whoever loses its parent becomes its child (or the child
of the first process of the run's own pid namespace).

A process can have ended in part: its first thread is a zombie, without memory and files, and its
other threads go on.  Each thread can have files of its own.  So threads are asked, not processes.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def descendants(ancestor: int) -> list[int]:
    """Return the process ids of all descendants that there are now."""
    below = None if lists_children() else children_of_all()
    found: list[int] = []
    left = [ancestor]
    while left:
        process = left.pop()
        born = _listed_children(process) if below is None else below.get(process, [])
        found += born
        left += born
    return found


def children(process: int) -> list[int]:
    """Return the process ids of the children that a process has now."""
    if lists_children():
        return _listed_children(process)
    return children_of_all().get(process, [])


def lists_children() -> bool:
    """Whether this kernel lists the children of a process (CONFIG_PROC_CHILDREN)."""
    own = os.getpid()
    return Path(f"/proc/{own}/task/{own}/children").exists()


def _listed_children(process: int) -> list[int]:
    found: list[int] = []
    for thread in threads(process):
        with contextlib.suppress(OSError):  # it has ended
            found += map(int, (thread / "children").read_bytes().split())
    return found


def children_of_all() -> dict[int, list[int]]:
    """Return the children of each process, from what each process says of its parent."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_bytes()
        except OSError:
            continue
        # pid (name) state parent ...; the name may have spaces and brackets
        parent = int(text.rpartition(b")")[2].split()[1])
        found.setdefault(parent, []).append(int(entry.name))
    return found


def threads(process: int) -> list[Path]:
    """Return the folders of a process's threads; none of a process that has ended."""
    try:
        return list(Path(f"/proc/{process}/task").iterdir())
    except OSError:
        return []


def living_thread(process: int) -> Path | None:
    """Return the folder of a thread that is no zombie, or None."""
    for thread in threads(process):
        if lives(thread):
            return thread
    return None


def lives(thread: Path) -> bool:
    """Whether a thread has memory: a zombie has none."""
    return b"VmRSS" in fields(thread / "status", (b"VmRSS",))


def user_of(thread: Path) -> int | None:
    """Return the real user id of a thread; the owner of its folder in /proc may be another."""
    return fields(thread / "status", (b"Uid",)).get(b"Uid")


def fields(file: Path, names: tuple[bytes, ...]) -> dict[bytes, int]:
    """Return the numbers of lines such as `VmRSS:  1234 kB`; none of a process that has ended."""
    found = {}
    try:
        with file.open("rb") as opened:
            for line in opened:
                name, _, rest = line.partition(b":")
                if name in names:
                    found[name] = int(rest.split()[0])
    except PermissionError:
        raise
    except OSError:
        return {}
    return found
