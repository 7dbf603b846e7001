"""Directories that are written to a bucket: made on this disk first, uploaded as a whole, and marked until they are.

No store of objects can rename a folder.  So an object, `.psynth-uploading`, is there from before the first change until
after the last one: who reads a directory that has it, reads nothing.  It says who writes, and which files are theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from psynth_jax.errors import InputError
from psynth_jax.storage.client import BucketError
from psynth_jax.storage.paths import AnyPath, BucketPath
from psynth_jax.storage.process import life_of, named, this_process
from psynth_jax.storage.staging import UPLOADING

_AT_ONCE = 8  # uploads
_RENEW = 60.0  # seconds after which an upload says again that it is at work
_AT_WORK = 900.0  # seconds for which an upload from elsewhere is taken to be at work, whatever its clock says
_PROGRESS = logging.getLogger("psynth_jax.progress")


@contextlib.contextmanager
def published(target: BucketPath, names: Collection[str], what: str) -> Iterator[Path]:
    """Yield an empty local directory whose files take the place of what is at `target` at the end of the block.

    When the block raises, what is at `target` stays.  When the upload fails, `target` cannot be read until it is written
    again.

    Args:
      names: of the files that may be replaced; what an upload that did not end has left may be, too.
      what: `target` must be, if there is something.

    Raises:
      InputError: `target` holds anything else, or somebody is writing it.
      OSError: the bucket does not take it.
    """
    _look(target, names, what)
    with tempfile.TemporaryDirectory(prefix="psynth-") as scratch:
        fresh = Path(scratch)
        yield fresh
        _upload(fresh, target, _look(target, names, what))  # again: making the files may have taken long


def adopt(target: AnyPath) -> None:
    """Make an upload to `target` that did not end one of this process, which may write it again at once.

    For who knows that nobody else is at work there.  Raises `OSError`.
    """
    if not isinstance(target, BucketPath):
        return
    mark = target / UPLOADING
    with contextlib.suppress(FileNotFoundError):  # there is none
        content, generation = mark.read_with_generation()
        mark.write_bytes(json.dumps({**_read_mark(content), **this_process()}).encode(), only_over=generation)


@dataclasses.dataclass(frozen=True)
class _Found:
    """What is at a target: files that may be removed, and the generation of a mark (0: there is none)."""

    files: frozenset[str]
    mark: int


def _look(target: BucketPath, names: Collection[str], what: str) -> _Found:
    """Return what is at `target`.  Raises `InputError` for anything that may not be replaced."""
    if not target.key:
        raise InputError(f"{target} is a whole bucket: name a folder in it")
    if target.is_file():
        raise InputError(f"{target} exists and is not {what}: it is a single object; choose another name")
    begun, generation = _mark_of(target)
    mine = {UPLOADING, *begun.get("files", ())}
    there = {each.name for each in target.files()}
    strange = sorted(name for name in there - mine if name.partition("/")[0] not in names)
    if strange:
        raise InputError(f"{target} exists and is not {what}: it has {strange[0]}; choose another name")
    return _Found(frozenset(there - {UPLOADING}), generation)


def _mark_of(target: BucketPath) -> tuple[Mapping[str, Any], int]:
    """Return what an earlier upload that has not ended says of itself.  Raises `InputError` while it may be at work."""
    mark = target / UPLOADING
    try:
        content, generation = mark.read_with_generation()
    except FileNotFoundError:
        return {}, 0
    begun = _read_mark(content)
    began = begun.get("time", 0.0)
    age = time.time() - began if isinstance(began, int | float) else _AT_WORK
    if begun.items() >= this_process().items():  # an upload of this very process, which failed
        return begun, generation
    life = life_of(begun)
    if life == "alive" or (life == "unknown" and age < _AT_WORK):
        raise InputError(f"{target} is being written by {named(begun)}; if that has ended, remove {mark}")
    return begun, generation


def _read_mark(content: bytes) -> Mapping[str, Any]:
    """Return what a mark says; nothing, when it is damaged."""
    try:
        begun = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return begun if isinstance(begun, dict) and isinstance(begun.get("files", []), list) else {}


class _Mark:
    """The mark of this upload.  Every write of it fails when somebody else has written it."""

    def __init__(self, path: BucketPath, files: Collection[str], generation: int):
        self._path, self._files, self._generation = path, sorted(files), generation
        self._write()

    def _write(self) -> None:
        self._time = time.time()
        content = json.dumps(this_process() | {"time": self._time, "files": self._files}).encode()
        self._generation = self._path.write_bytes(content, only_over=self._generation)

    def renew(self) -> None:
        """Say now and then that the upload is at work."""
        if abs(time.time() - self._time) > _RENEW:
            self._write()

    def remove(self) -> None:
        """Say that the upload has ended."""
        self._path.unlink(missing_ok=True, only_over=self._generation)


def _upload(fresh: Path, target: BucketPath, found: _Found) -> None:
    """Upload all files, then remove what is no longer part of the directory."""
    files = {path.relative_to(fresh).as_posix(): path for path in sorted(fresh.rglob("*")) if path.is_file()}
    mark = _Mark(target / UPLOADING, {*files, *found.files}, found.mark)
    try:
        _upload_files(files, target, mark)
        for name in sorted(found.files - {*files}):
            (target / name).unlink(missing_ok=True)
        mark.remove()
    except OSError as error:
        reason = f"{error.strerror}; it is incomplete, and cannot be read until it is written again"
        raise BucketError(error.errno, reason, str(target)) from None


def _upload_files(files: Mapping[str, Path], target: BucketPath, mark: _Mark) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total, done = sum(sizes.values()), 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        names = {pool.submit((target / name).upload, path): name for name, path in files.items()}
        waiting = set(names)
        try:
            while waiting:
                finished, waiting = wait(waiting, _RENEW, FIRST_COMPLETED)
                for upload in finished:
                    upload.result()
                    done += sizes[names[upload]]
                mark.renew()
                _PROGRESS.info("uploading %s, %d of %d MB", target, done / 1e6, total / 1e6)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
