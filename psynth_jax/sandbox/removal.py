"""Remove the folder of a run, whatever a program has made in it.

Paths have an end, and recursion too.  A folder's folders are therefore moved up beside it, each
under a number, before it is removed:

    top/folder/a/b/c    ->    top/folder, top/0 (was a)    ->    top/1 (was b)    ->    ...

Others may have put a link, or a folder of their own, in the place of any name.  So every folder is
opened without following links, must belong to us or lie below what does, and is named by its
descriptor from then on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(top: Path, inner: str) -> None:
    """Remove a folder of ours, which has files and one folder, `inner`, with anything in it.

    Raises `OSError` where it is absent, is no folder of this user, or does not let itself be
    removed.
    """
    with _opened(str(top)) as opened:
        if os.fstat(opened).st_uid != os.geteuid():
            raise PermissionError(f"{top} belongs to another user")
        _remove_tree(inner, opened)
        for entry in _entries(opened):
            os.unlink(entry.name, dir_fd=opened)
    # In a folder with the sticky bit, as /tmp is, nobody else can have renamed ours.
    top.rmdir()


def _remove_tree(inner: str, top: int) -> None:
    count = 0
    left = [inner]
    while left:
        name = left.pop()
        _let_in(name, top)
        with _opened(name, top) as place:
            for entry in _entries(place):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=place)
                    continue
                _let_in(entry.name, place)  # to move a folder is to write its ".."
                os.rename(entry.name, f"{count}", src_dir_fd=place, dst_dir_fd=top)
                left.append(f"{count}")
                count += 1
        os.rmdir(name, dir_fd=top)


@contextlib.contextmanager
def _opened(name: str, place: int | None = None) -> Iterator[int]:
    opened = os.open(name, _OPEN, dir_fd=place)
    try:
        yield opened
    finally:
        os.close(opened)


def _entries(place: int) -> list[os.DirEntry[str]]:
    with os.scandir(place) as entries:
        return list(entries)


def _let_in(name: str, place: int) -> None:
    """Let the owner of a folder into it, whatever its mode says.  Root needs no mode."""
    if os.geteuid() == 0:
        return
    # A descriptor that only names the folder needs no right to it, and no link is followed.
    named = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    try:
        os.chmod(f"/proc/self/fd/{named}", 0o700)  # noqa: PTH101  a descriptor, not a path
    finally:
        os.close(named)
