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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from psynth_jax.errors import InputError
from psynth_jax.storage.client import BucketError
from psynth_jax.storage.paths import BucketPath
from psynth_jax.storage.process import life_of, named, this_process
from psynth_jax.storage.staging import UPLOADING

_AT_ONCE = 8  # uploads
_AT_WORK = 3600.0  # seconds for which an upload from elsewhere is taken to be at work
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
    found = _look(target, names, what)
    with tempfile.TemporaryDirectory(prefix="psynth-") as scratch:
        fresh = Path(scratch)
        yield fresh
        _upload(fresh, target, found)


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
        begun = json.loads(content)
    except FileNotFoundError:
        return {}, 0
    except ValueError:
        begun = {}
    if not isinstance(begun, dict) or not isinstance(begun.get("files", []), list):
        begun = {}
    began = begun.get("time", 0.0)
    age = time.time() - began if isinstance(began, int | float) else _AT_WORK
    if begun.items() >= this_process().items():  # an upload of this very process, which failed
        return begun, generation
    life = life_of(begun)
    if life == "alive" or (life == "unknown" and age < _AT_WORK):
        raise InputError(f"{target} is being written by {named(begun)}; if that has ended, remove {mark}")
    return begun, generation


def _upload(fresh: Path, target: BucketPath, found: _Found) -> None:
    """Upload all files, then remove what is no longer part of the directory."""
    files = {path.relative_to(fresh).as_posix(): path for path in sorted(fresh.rglob("*")) if path.is_file()}
    mark = target / UPLOADING
    begun = this_process() | {"time": time.time(), "files": sorted({*files, *found.files})}
    generation = mark.write_bytes(json.dumps(begun).encode(), only_over=found.mark)
    try:
        _upload_files(files, target)
        for name in sorted(found.files - {*files}):
            (target / name).unlink(missing_ok=True)
        mark.unlink(missing_ok=True, only_over=generation)
    except OSError as error:
        reason = f"{error.strerror}; it is incomplete, and cannot be read until it is written again"
        raise BucketError(error.errno, reason, str(target)) from None


def _upload_files(files: Mapping[str, Path], target: BucketPath) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total, done = sum(sizes.values()), 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running = {name: pool.submit((target / name).upload, path) for name, path in files.items()}
        try:
            for name, upload in running.items():
                upload.result()
                done += sizes[name]
                _PROGRESS.info("uploading %s, %d of %d MB", target, done / 1e6, total / 1e6)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
