"""The folder of a run: what is in it, and how much it takes.

    psynth-sandbox-.../      ours; the user of the run may pass through, not look
        program.py           ours; the user of the run may read it
        folder/              the program's: working directory, HOME and TMPDIR

What lies in the program's folder is the program's doing: names are long, trees are deep, modes say
that nobody may look.  Links are never followed.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from psynth_jax.sandbox import removal
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
        removal.remove(self.top, self.work.name)


def make(
    program: bytes,
    files: Mapping[str, bytes],
    user: User,
    top: Path,
) -> RunFolder:
    """Make the folder of a run: the program, and a folder with `files` that belongs to `user`.

    Nobody but the user of the run can pass through it.  Raises `FileExistsError` where there is
    something of the name of `top`.
    """
    made = RunFolder(top)
    made.top.mkdir(mode=0o700)
    made.program.write_bytes(program)
    made.program.chmod(0o400)
    made.work.mkdir(mode=0o700)
    for name, content in files.items():
        file = made.work / name
        file.write_bytes(content)
        file.chmod(0o600)
        if user.dropped:
            os.chown(file, user.uid, user.uid)
    if user.dropped:
        os.chown(made.work, user.uid, user.uid)
        _open_to_group(made.program, user.uid, 0o440)
        _open_to_group(made.top, user.uid, 0o710)
    return made


def _open_to_group(path: Path, group: int, mode: int) -> None:
    os.chown(path, -1, group)
    path.chmod(mode)


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


def is_deleted_file(status: os.stat_result) -> bool:
    """Whether this is a regular file without a name."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 0


def bytes_of(status: os.stat_result) -> int:
    """Return what a file takes, or says that it takes."""
    return max(status.st_size, status.st_blocks * _BLOCK)
