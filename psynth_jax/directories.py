"""Directories that are written whole or not at all, and what the disk says against it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from psynth_jax.errors import DataError, InputError
from psynth_jax.storage.paths import AnyPath, BucketPath
from psynth_jax.storage.publishing import published

_TRIES, _PAUSE = 40, 0.05  # of removing a folder, and seconds between them


@contextmanager
def replacing(target: AnyPath, names: Collection[str], what: str) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `target` at the end of the block.

    What was at `target` stays until then.  When the block raises, or the new directory cannot be moved
    into place, it stays for good.  A link stays a link: what it points to is replaced.  Into a bucket
    the directory is uploaded, see `storage.publishing`.

    Raises `InputError` when `target` holds anything but files of these names: it is not `what`, and
    would be lost.
    """
    if isinstance(target, BucketPath):
        with published(target, names, what) as fresh:
            yield fresh
        return
    try:
        str(target).encode("utf-8")
    except UnicodeEncodeError:  # the libraries that write into it take UTF-8 alone
        raise InputError(f"{target} is not a UTF-8 name; choose another one") from None
    target = followed(target)
    if target.exists():
        strange = [target.name] if not target.is_dir() else [p.name for p in target.iterdir() if p.name not in names]
        if strange:
            raise InputError(f"{target} exists and is not {what}: it has {min(strange)}; choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    inside = _stays_in_place(target)
    # Next to the target, or in it: a rename does not cross file systems.
    with _scratch(target if inside else target.parent, target.name) as scratch:
        fresh, old = scratch / "new", scratch / "old"
        fresh.mkdir()
        yield fresh
        if inside:
            _move_contents(fresh, target, old)
            return
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise


def followed(target: Path) -> Path:
    """Return the absolute path behind all links of `target`; what it names need not exist.

    Raises `InputError` for links that lead to themselves, and for what no path can be.
    """
    try:
        found = target.resolve()
        looped = found.is_symlink()
    except RuntimeError:  # before Python 3.13
        looped = True
    except (OSError, ValueError) as error:
        raise InputError(f"{str(target)!r} cannot be written: {error}") from None
    if looped:
        raise InputError(f"{target} is a link that leads back to itself")
    return found


def _stays_in_place(target: Path) -> bool:
    """Whether a directory can be filled, but should not be replaced.

    That is a mounted disk, the folder that this process works in, and one in a folder of others.
    """
    if not target.is_dir():
        return False
    return os.path.ismount(target) or target == Path.cwd() or not os.access(target.parent, os.W_OK)


def _move_contents(fresh: Path, target: Path, old: Path) -> None:
    """Replace what a directory holds by what `fresh` holds; put all of it back if that fails."""
    old.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for source, place in ((target, old), (fresh, target)):
            for path in sorted(source.iterdir()):
                if path != fresh.parent:
                    path.rename(place / path.name)
                    moved.append((path, place / path.name))
    except BaseException:
        for before, after in reversed(moved):
            after.rename(before)
        raise


@contextmanager
def _scratch(parent: Path, name: str) -> Iterator[Path]:
    # The name is known before the folder is made, so that no signal can come between the two.
    folder = parent / f".{name[:80]}-{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder for good.

    A second signal may come meanwhile: it ends the process afterwards.  Threads of a writer that was
    interrupted may still put files there: it is removed again.
    """
    ended: BaseException | None = None
    for _ in range(_TRIES):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(_PAUSE)
        except BaseException as error:  # noqa: BLE001 (SystemExit, KeyboardInterrupt)
            ended = error
    if ended is not None:
        raise ended


@contextmanager
def writing(target: AnyPath) -> Iterator[None]:
    """Turn an `OSError` of the block into a `DataError` that says why `target` could not be written, and that it was not."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        left = "" if isinstance(target, BucketPath) else "; nothing was written there"
        raise DataError(f"cannot write {target}: {reason}{left}") from None


@contextmanager
def made(directory: AnyPath) -> Iterator[None]:
    """Make a directory for the block; one that was not there before is removed again if the block leaves it empty."""
    if isinstance(directory, BucketPath):  # a folder there is what is in it
        yield
        return
    directory = followed(directory)
    was_there = directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not was_there:
            with contextlib.suppress(OSError):  # it is not empty
                directory.rmdir()
