"""What the processes of a run use, from /proc.

The supervisor is the ancestor of them all: whoever loses its parent becomes its child (or the child
of the first process of the run's own pid namespace).

A process can have ended in part: its first thread is a zombie, without memory and files, and its
other threads go on.  Each thread can have files of its own.  So threads are asked, not processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from psynth_jax.sandbox import kernel
from psynth_jax.sandbox.folder import bytes_of, is_deleted_file

_KIBIBYTE = 1024
_MEMORY = (b"VmRSS", b"VmSwap", b"VmPTE")
_DELETED = b" (deleted)\n"
_MOST_MAPS = 1 << 20  # bytes of text: 10,000 maps
_TOO_MANY = -1  # no inode
_SHARED_MEMORY = b"/dev/zero (deleted)\n"  # memory that processes share, without a file


@dataclasses.dataclass(frozen=True)
class Usage:
    """What processes use together: processes and threads, and bytes of memory."""

    tasks: int
    memory: int


@dataclasses.dataclass(frozen=True)
class Deleted:
    """Deleted files that processes still have open or mapped.

    Attributes:
        opened: bytes of those that are open.
        mapped: how many are closed, but still mapped.  Nobody can ask for their size.  A process
            with too many maps to look at counts as one.
        hidden: threads that let nobody look; one may just be about to execute something.
    """

    opened: int
    mapped: int
    hidden: frozenset[Path]


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
    for thread in _threads(process):
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


def usage(processes: list[int]) -> Usage:
    """Return what processes use.  Pages that several of them share are counted in each of them."""
    tasks = memory = 0
    for process in processes:
        fields = _fields(Path(f"/proc/{process}/status"), (b"Threads", *_MEMORY))
        threads = fields.pop(b"Threads", 0)
        tasks += threads
        if not fields and threads > 1 and (living := _living_thread(process)) is not None:
            fields = _fields(living / "status", _MEMORY)
        memory += sum(fields.values()) * _KIBIBYTE
    return Usage(tasks, memory)


def shared_out_memory(processes: list[int]) -> int | None:
    """Return the bytes of memory, each shared page counted once; None if we may not look."""
    memory = 0
    counted: list[int] = []
    for process in processes:
        # After vfork a child has its parent's memory, not a copy of it.
        if any(kernel.have_one_memory(process, other) for other in counted):
            continue
        counted.append(process)
        living = _living_thread(process)
        if living is None:
            continue
        try:
            fields = _fields(living / "smaps_rollup", (b"Pss", b"SwapPss"))
        except PermissionError:
            return None
        memory += sum(fields.values()) * _KIBIBYTE
    return memory


def deleted_files(processes: list[int], uid: int) -> Deleted:
    """Look for deleted files of a user's processes."""
    opened: dict[int, int] = {}
    mapped: set[int] = set()
    hidden: set[Path] = set()
    for process in processes:
        for thread in _threads(process):
            try:
                _find_open(thread, opened)
                _find_mapped(thread, mapped)
            except PermissionError:
                if _lives(thread) and _user_of(thread) == uid:
                    hidden.add(thread)
            except OSError:  # it has ended
                continue
    # By inode alone: over some file systems stat and maps do not name the same device.
    closed = mapped - set(opened)
    return Deleted(sum(opened.values()), len(closed), frozenset(hidden))


def _find_open(thread: Path, found: dict[int, int]) -> None:
    for descriptor in (thread / "fd").iterdir():
        try:
            status = descriptor.stat()  # of what is open, which may have no name any more
        except OSError:
            continue
        if is_deleted_file(status):
            found[status.st_ino] = bytes_of(status)


def _find_mapped(thread: Path, found: set[int]) -> None:
    with (thread / "maps").open("rb") as file:
        maps = file.read(_MOST_MAPS)
    if len(maps) == _MOST_MAPS:
        # To read them all, of many processes, would leave no time to look at anything else.
        found.add(_TOO_MANY)
    if _DELETED not in maps:
        return
    for line in maps.splitlines(keepends=True):
        if not line.endswith(_DELETED):
            continue
        # addresses, rights, offset, device, inode, path
        fields = line.split(maxsplit=5)
        if fields[5] != _SHARED_MEMORY:
            found.add(int(fields[4]))


def _threads(process: int) -> list[Path]:
    """Return the folders of a process's threads; none of a process that has ended."""
    try:
        return list(Path(f"/proc/{process}/task").iterdir())
    except OSError:
        return []


def _living_thread(process: int) -> Path | None:
    """Return the folder of a thread that is no zombie, or None."""
    for thread in _threads(process):
        if _lives(thread):
            return thread
    return None


def _lives(thread: Path) -> bool:
    """Whether a thread has memory: a zombie has none."""
    return b"VmRSS" in _fields(thread / "status", (b"VmRSS",))


def _user_of(thread: Path) -> int | None:
    """Return the real user id of a thread; the owner of its folder in /proc may be another."""
    return _fields(thread / "status", (b"Uid",)).get(b"Uid")


def _fields(file: Path, names: tuple[bytes, ...]) -> dict[bytes, int]:
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
