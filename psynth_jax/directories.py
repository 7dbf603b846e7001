"""Directories that are written whole or not at all, and what the disk says against it."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from psynth_jax.errors import DataError, InputError


@contextmanager
def replacing(target: Path, names: Collection[str], what: str) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `target` at the end of the block.

    What was at `target` stays until then.  When the block raises, or the new directory cannot be moved into place, it stays
    for good.

    Raises `InputError` when `target` holds anything but files of these names: it is not `what`, and would be lost.
    """
    try:
        str(target).encode("utf-8")
    except UnicodeEncodeError:  # the libraries that write into it take UTF-8 alone
        raise InputError(f"{target} is not a UTF-8 name; choose another one") from None
    target = target.absolute()  # a temporary directory next to a relative path would be relative, too
    if target.exists():
        strange = [target.name] if not target.is_dir() else [p.name for p in target.iterdir() if p.name not in names]
        if strange:
            raise InputError(f"{target} exists and is not {what}: it has {min(strange)}; choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Next to the target: a rename does not cross file systems.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `DataError` that says why `target` could not be written, and that it was not."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        raise DataError(f"cannot write {target}: {reason}; nothing was written there") from None


@contextmanager
def made(directory: Path) -> Iterator[None]:
    """Make a directory for the block; one that was not there before is removed again if the block leaves it empty."""
    was_there = directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not was_there:
            with contextlib.suppress(OSError):  # it is not empty
                directory.rmdir()
