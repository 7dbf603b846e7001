"""The folder of a run: what is in it, how much it takes, and its removal.

    psynth-sandbox-.../      ours; others may pass through, not look
        program.py           ours; read only
        folder/              the program's: working directory, HOME and TMPDIR

What lies in the program's folder is the program's doing: names are long, trees are deep, modes say
that nobody may look.  Links are never followed.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from psynth_jax.sandbox.user import User

_ENTRY = 4096  # bytes: what a name costs at least
_BLOCK = 512  # bytes, of st_blocks


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of one run, on this machine's disk."""

    top: Path

    @property
    def program(self) -> Path:
        """The file with the program."""
        return self.top / "program.py"

    @property
    def work(self) -> Path:
        """What the program can write to."""
        return self.top / "folder"

    def used(self, enough: int) -> int:
        """Count the bytes below the program's folder; stop where they are more than `enough`.

        What cannot be looked at counts as more than enough: to change its mode would be a race
        against a program that puts a link in its place.
        """
        total = 0
        left = [str(self.work)]
        while left and total <= enough:
            try:
                sizes, folders = _looked_at(left.pop(), enough)
            except FileNotFoundError:  # it has been removed meanwhile
                continue
            except OSError:
                return enough + 1
            total += sizes
            left += folders
        return total

    def remove(self) -> None:
        """Remove all of it.  No process of the run is left by now."""
        _remove_tree(self.work)
        for file in self.top.iterdir():
            file.unlink()
        self.top.rmdir()


def make(
    program: bytes,
    files: Mapping[str, bytes],
    user: User,
    parent: Path,
    prefix: str,
) -> RunFolder:
    """Make the folder of a run: the program, and a folder with `files` that belongs to `user`.

    Its name is `prefix` and something that nobody can guess.
    """
    made = RunFolder(Path(tempfile.mkdtemp(prefix=prefix, dir=parent)))
    made.top.chmod(0o711)
    made.program.write_bytes(program)
    made.program.chmod(0o444)
    made.work.mkdir()
    made.work.chmod(0o700)
    for name, content in files.items():
        file = made.work / name
        file.write_bytes(content)
        file.chmod(0o600)
        if user.dropped:
            os.chown(file, user.uid, user.uid)
    if user.dropped:
        os.chown(made.work, user.uid, user.uid)
    return made


def _looked_at(place: str, enough: int) -> tuple[int, list[str]]:
    """Return the bytes of a folder's own entries, up to `enough`, and the folders among them."""
    total, folders = 0, []
    opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.scandir(opened) as entries:
            for entry in entries:
                total += _size(entry)
                if total > enough:
                    break
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{place}/{entry.name}")
    finally:
        os.close(opened)
    return total, folders


def _size(entry: os.DirEntry[str]) -> int:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return max(_ENTRY, bytes_of(status))


def _remove_tree(top: Path) -> None:
    """Remove a tree of any depth.

    Paths have an end, and recursion too.  A folder's folders are therefore moved up beside it, each
    under a number, before it is removed:

        folder/a/b/c    ->    folder, 0 (was a)    ->    1 (was b)    ->    2 (was c)
    """
    count = 0
    left = [top]
    while left:
        place = left.pop()
        _let_in(place)
        for entry in list(os.scandir(place)):
            if not entry.is_dir(follow_symlinks=False):
                Path(entry.path).unlink()
                continue
            _let_in(Path(entry.path))  # to move a folder is to write its ".."
            moved = top.parent / f"{count}"
            count += 1
            Path(entry.path).rename(moved)
            left.append(moved)
        place.rmdir()


def _let_in(folder: Path) -> None:
    """Let the owner of a folder into it, whatever its mode says.  Root needs no mode."""
    if os.geteuid() != 0:
        folder.chmod(0o700)


def is_deleted_file(status: os.stat_result) -> bool:
    """Whether this is a regular file without a name."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 0


def bytes_of(status: os.stat_result) -> int:
    """Return what a file takes, or says that it takes."""
    return max(status.st_size, status.st_blocks * _BLOCK)
