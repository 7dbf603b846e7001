"""What the processes of a run use, from /proc.

The supervisor is the ancestor of them all: whoever loses its parent becomes its child (or the child
of the first process of the run's own pid namespace).
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from psynth_jax.sandbox.folder import bytes_of, is_deleted_file

_KIBIBYTE = 1024
_DELETED = b" (deleted)\n"
_SHARED_MEMORY = b"/dev/zero (deleted)\n"  # memory that processes share, without a file


@dataclasses.dataclass(frozen=True)
class Usage:
    """What processes use together: processes and threads, and bytes of memory."""

    tasks: int
    memory: int


def descendants(ancestor: int) -> list[int]:
    """Return the process ids of all descendants that there are now."""
    below = _children_of_all() if not _lists_children() else None
    found: list[int] = []
    left = [ancestor]
    while left:
        process = left.pop()
        born = below.get(process, []) if below is not None else _listed_children(process)
        found += born
        left += born
    return found


def children(process: int) -> list[int]:
    """Return the process ids of the children that a process has now."""
    if _lists_children():
        return _listed_children(process)
    return _children_of_all().get(process, [])


def _lists_children() -> bool:
    """Whether this kernel lists the children of a process (CONFIG_PROC_CHILDREN)."""
    own = os.getpid()
    return os.path.exists(f"/proc/{own}/task/{own}/children")  # noqa: PTH110


def _listed_children(process: int) -> list[int]:
    """Return the children of all threads of a process."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:  # it has ended
        pass
    return found


def _children_of_all() -> dict[int, list[int]]:
    """Return the children of each process, from what each process says of its parent."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            text = Path(f"/proc/{name}/stat").read_bytes()
        except OSError:
            continue
        # pid (name) state parent ...; the name may have spaces and brackets
        parent = int(text.rpartition(b")")[2].split()[1])
        found.setdefault(parent, []).append(int(name))
    return found


def usage(processes: list[int]) -> Usage:
    """Return what processes use.  Pages that several of them share are counted in each of them."""
    tasks = memory = 0
    for process in processes:
        fields = _fields(f"/proc/{process}/status", (b"Threads", b"VmRSS", b"VmSwap", b"VmPTE"))
        if b"Threads" in fields:
            tasks += fields.pop(b"Threads")
            memory += sum(fields.values()) * _KIBIBYTE
    return Usage(tasks, memory)


def shared_out_memory(processes: list[int]) -> int | None:
    """Return the bytes of memory, each shared page counted once; None if we may not look."""
    memory = 0
    for process in processes:
        try:
            # A process that is about to end has no memory, and says ESRCH.
            fields = _fields(f"/proc/{process}/smaps_rollup", (b"Pss", b"SwapPss"))
        except PermissionError:
            return None
        memory += sum(fields.values()) * _KIBIBYTE
    return memory


def _fields(file: str, names: tuple[bytes, ...]) -> dict[bytes, int]:
    """Return the numbers of lines such as `VmRSS:  1234 kB`; nothing of a process that has ended."""
    found = {}
    try:
        with open(file, "rb") as opened:
            for line in opened:
                name, _, rest = line.partition(b":")
                if name in names:
                    found[name] = int(rest.split()[0])
    except PermissionError:
        raise
    except OSError:
        return {}
    return found


def deleted_bytes(processes: list[int], largest: int) -> int:
    """Count the bytes of deleted files that processes still have open or mapped.

    Nobody can ask for the size of a file that is deleted, closed and still mapped: it counts as
    `largest` bytes, as large as a file can become.
    """
    opened: dict[int, int] = {}
    mapped: set[int] = set()
    for process in processes:
        try:
            _find_open(process, opened)
            _find_mapped(process, mapped)
        except OSError:  # it has ended, or is about to execute Python and cannot be looked at
            continue
    # By inode alone: over some file systems stat and maps do not name the same device.
    closed = mapped - set(opened)
    return sum(opened.values()) + len(closed) * largest


def _find_open(process: int, found: dict[int, int]) -> None:
    for number in os.listdir(f"/proc/{process}/fd"):
        try:
            status = os.stat(f"/proc/{process}/fd/{number}")
        except OSError:
            continue
        if is_deleted_file(status):
            found[status.st_ino] = bytes_of(status)


def _find_mapped(process: int, found: set[int]) -> None:
    with open(f"/proc/{process}/maps", "rb") as file:
        for line in file:
            if not line.endswith(_DELETED):
                continue
            # addresses, rights, offset, device, inode, path
            fields = line.split(maxsplit=5)
            if fields[5] != _SHARED_MEMORY:
                found.add(int(fields[4]))
