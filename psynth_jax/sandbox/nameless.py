"""What processes hold that no folder shows: deleted files, and memory that they share.

open, deleted           /proc/1/fd/3 -> ".../a (deleted)"    its size can be asked for
mapped only, deleted    7f..-7f.. rw-s 0 08:01 77 .../a (deleted)        it cannot
shared memory           7f..-7f.. rw-s 0 00:01 12 /dev/zero (deleted)    pages stay as long as
                        anybody maps a part of it, also where no process has touched them
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from psynth_jax.sandbox.folder import bytes_of, is_deleted_file
from psynth_jax.sandbox.processes import lives, threads, user_of

_DELETED = b" (deleted)\n"
_SHARED_MEMORY = b"/dev/zero (deleted)\n"
_MOST_MAPS = 1 << 20  # bytes of text: 10,000 maps
_TOO_MANY = -1  # no inode
_BLOCK = 512  # bytes, of st_blocks


@dataclasses.dataclass(frozen=True)
class Nameless:
    """Deleted files that processes still have open or mapped, and memory that they share.

    Attributes:
        opened: bytes of those that are open.
        mapped: how many are closed, but still mapped.  Nobody can ask for their size.  A process
            with too many maps to look at counts as one.
        shared: bytes of memory that processes share without a file, by inode.
        hidden: threads that let nobody look; one may just be about to execute something.
    """

    opened: int
    mapped: int
    shared: Mapping[int, int]
    hidden: frozenset[Path]


def look(
    processes: Sequence[int],
    uid: int,
    installed: Sequence[str] = (),
    before: Mapping[int, int] | None = None,
) -> Nameless:
    """Look for what a user's processes hold.

    Args:
        processes: their ids.
        uid: of the user.
        installed: paths that only others write to.  A library that is upgraded while a process
            maps it is a deleted file, too, but none of the program's.
        before: what was `shared` at the last look.  Who unmaps a part gives no page of it back.
    """
    finder = _Finder(tuple(os.fsencode(path) for path in installed), before or {})
    hidden: set[Path] = set()
    for process in processes:
        for thread in threads(process):
            try:
                finder.find_open(thread)
                finder.find_mapped(thread)
            except PermissionError:
                if lives(thread) and user_of(thread) == uid:
                    hidden.add(thread)
            except OSError:  # it has ended
                continue
    # By inode alone: over some file systems stat and maps do not name the same device.
    closed = finder.mapped - set(finder.opened)
    opened = sum(finder.opened.values())
    return Nameless(opened, len(closed), finder.shared, frozenset(hidden))


class _Finder:
    """What has been found so far, by inode."""

    def __init__(self, installed: tuple[bytes, ...], before: Mapping[int, int]) -> None:
        self.installed = installed
        self.before = before
        self.opened: dict[int, int] = {}
        self.mapped: set[int] = set()
        self.shared: dict[int, int] = {}

    def find_open(self, thread: Path) -> None:
        for descriptor in (thread / "fd").iterdir():
            try:
                status = descriptor.stat()  # of what is open, which may have no name any more
            except OSError:
                continue
            if is_deleted_file(status):
                self.opened[status.st_ino] = bytes_of(status)

    def find_mapped(self, thread: Path) -> None:
        with (thread / "maps").open("rb") as file:
            maps = file.read(_MOST_MAPS)
        if len(maps) == _MOST_MAPS:
            # To read them all, of many processes, would leave no time to look at anything else.
            self.mapped.add(_TOO_MANY)
        if _DELETED not in maps:
            return
        for line in maps.splitlines(keepends=True):
            if not line.endswith(_DELETED):
                continue
            # addresses, rights, offset, device, inode, path
            addresses, _, offset, _, inode, path = line.split(maxsplit=5)
            if path == _SHARED_MEMORY:
                self._find_shared(thread, addresses, int(offset, 16), int(inode))
            elif not _is_below(path, self.installed):
                self.mapped.add(int(inode))

    def _find_shared(self, thread: Path, addresses: bytes, offset: int, inode: int) -> None:
        start, end = (int(address, 16) for address in addresses.split(b"-"))
        # Pages before and behind this part may be there as well.  Root can ask how many.
        link = thread.parent.parent / "map_files" / f"{start:x}-{end:x}"
        try:
            found = link.stat().st_blocks * _BLOCK
        except OSError:
            found = max(offset + end - start, self.before.get(inode, 0))
        self.shared[inode] = max(found, self.shared.get(inode, 0))


def _is_below(path: bytes, folders: Sequence[bytes]) -> bool:
    beginnings: list[bytes] = []
    for folder in folders:
        beginnings += (folder + b"/", folder + _DELETED)
    return path.startswith(tuple(beginnings))
