"""Sums of a checkpoint's files, so that a damaged or half-copied one is known before anything of it is read.

    <step>/checksums.json        {"about/metadata": [bytes, CRC-32], ...}     written last, before the folder gets its name
    <step>/commit_success.txt    Orbax's own marks, written after it
          /_CHECKPOINT_METADATA

A checkpoint may lie in a bucket: its sums are of what was read back.  Knows no array.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from psynth_jax.files import write_text
from psynth_jax.storage.client import BucketError, asked
from psynth_jax.storage.paths import AnyPath, BucketPath, Stored

FILE = "checksums.json"
COMMITTED, _TIMES = "commit_success.txt", "_CHECKPOINT_METADATA"
# Checkpoints in buckets that this process has read to their end, with the generations of their files.
_checked: set[tuple[str, frozenset[Stored]]] = set()
_BLOCK, _AT_ONCE = 1 << 20, 4  # bytes, files


class Damaged(Exception):
    """A checkpoint is not as it was written; the message says where, in a few words."""


def note(checkpoint: AnyPath) -> None:
    """Write the sums of all files of a checkpoint into it.  Raises `OSError`."""
    names = sorted(list_files(checkpoint) - {COMMITTED, _TIMES})
    sums = {name: list(found) for name, found in _sums(checkpoint, names)}
    write_text(checkpoint / FILE, json.dumps(sums) + "\n")


def check(checkpoint: AnyPath) -> bool:
    """Check the files of a checkpoint; return whether it has sums, which one of an earlier version has not.

    Raises `Damaged` for a file that is not as it was noted, or no regular file.
    """
    known: tuple[str, frozenset[Stored]] | None = None
    if isinstance(checkpoint, BucketPath):
        known = str(checkpoint), frozenset(checkpoint.files())
        if known in _checked:
            return True
    there = list_files(checkpoint)
    if FILE not in there:
        return False
    every = _noted(checkpoint / FILE)
    for name in every:
        if name not in there:
            raise Damaged(f"{name} is missing")
    try:
        for name, found in _sums(checkpoint, list(every)):
            _compare(name, found, every[name])
    except BucketError:  # which says nothing of what is stored
        raise
    except OSError as error:
        name = str(error.filename).removeprefix(f"{checkpoint}/")
        raise Damaged(f"{name}: {error.strerror}") from None
    _check_marks(checkpoint)
    if known is not None:
        _checked.add(known)
    return True


def _compare(name: str, found: tuple[int, int], noted: tuple[int, int]) -> None:
    if found[0] != noted[0]:
        raise Damaged(f"{name} has {found[0]:,} bytes, not {noted[0]:,}")
    if found != noted:
        raise Damaged(f"{name} is not as it was written")


def list_files(checkpoint: AnyPath) -> set[str]:
    """Return the names of all files in a folder.  Raises `Damaged` for a FIFO, a socket or a device, which may never end."""
    if isinstance(checkpoint, BucketPath):
        return {each.name for each in checkpoint.files()}
    if not checkpoint.is_dir():
        raise Damaged("it is not a folder")
    found = set()
    for folder, _, names in os.walk(checkpoint, onerror=_raise):
        for name in names:
            path = Path(folder, name)
            try:
                mode = path.stat().st_mode
            except OSError as error:
                raise Damaged(f"{path.relative_to(checkpoint)}: {error.strerror}") from None
            if not stat.S_ISREG(mode):
                raise Damaged(f"{path.relative_to(checkpoint)} is not a regular file")
            found.add(path.relative_to(checkpoint).as_posix())
    return found


def _raise(error: OSError) -> None:
    raise Damaged(f"{error.filename}: {error.strerror}")


def _sums(checkpoint: AnyPath, names: Sequence[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Go through the sums of files, several being read at once.  Raises `OSError`, which names the file."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from zip(names, pool.map(lambda name: _sum(checkpoint / name), names), strict=True)


def _sum(path: AnyPath) -> tuple[int, int]:
    """Return a file's size and its CRC-32."""
    size, total = 0, 0
    guard = asked(str(path)) if isinstance(path, BucketPath) else contextlib.nullcontext()
    with guard, path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, total = size + len(block), zlib.crc32(block, total)
    return size, total


def _noted(path: AnyPath) -> dict[str, tuple[int, int]]:
    try:
        values = json.loads(path.read_bytes())
        return {str(name): (int(size), int(total)) for name, (size, total) in values.items()}
    except BucketError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path.name}: {error}") from None


def _check_marks(checkpoint: AnyPath) -> None:
    """Raise `Damaged` unless Orbax's marks are there: when it was written, and where, under the checkpoint's own name."""
    try:
        said = (checkpoint / COMMITTED).read_text(encoding="ascii")
        times = json.loads((checkpoint / _TIMES).read_bytes())
    except FileNotFoundError as error:
        raise Damaged(f"{PurePosixPath(error.filename).name} is missing") from None
    except BucketError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"the marks of its end are damaged: {error}") from None
    if not said.startswith("Checkpoint commit was successful to ") or not said.endswith(f"/{checkpoint.name}"):
        raise Damaged(f"{COMMITTED} is damaged")
    if not isinstance(times, dict) or not isinstance(times.get("commit_timestamp_nsecs"), int):
        raise Damaged(f"{_TIMES} is damaged")
