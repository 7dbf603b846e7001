"""Copies of what lies in a bucket, for readers that need files: model files, adapters, shards of examples.

    CACHE/buckets/BUCKET/KEY/FINGERPRINT/...     FINGERPRINT: of the names, sizes and generations of the objects

An object that is written again has another generation, so a copy is never out of date: it is of another fingerprint.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath

from psynth_jax.errors import InputError, UserError
from psynth_jax.storage.client import BucketError
from psynth_jax.storage.paths import BucketPath, Stored

UPLOADING = ".psynth-uploading"  # an object that is there for as long as a directory is being written
_AT_ONCE = 8  # downloads
_PART_SECONDS = 86400.0  # age of a copy that is not whole after which nobody works on it
_PROGRESS = logging.getLogger("psynth_jax.progress")


def cache_folder() -> Path:
    """Return the folder that holds this library's downloads: $PSYNTH_CACHE, or ~/.cache/psynth_jax.

    Raises `RuntimeError` where neither is known: see `known_cache_folder`.
    """
    return Path(os.environ.get("PSYNTH_CACHE") or Path.home() / ".cache" / "psynth_jax")


def known_cache_folder() -> Path | None:
    """Return `cache_folder`; None where it is not known.

    A container may have no HOME, and a user id without a name.
    """
    try:
        return cache_folder()
    except RuntimeError:
        return None


def list_files(source: BucketPath, error: type[UserError] = InputError) -> list[Stored]:
    """List all objects below `source`.

    Raises `error`, naming it, when the bucket does not list them, or when an upload to it has not ended.
    """
    try:
        listed = source.files()
    except OSError as said:
        raise error(f"cannot read {source}: {said.strerror}") from None
    for each in listed:
        if PurePosixPath(each.name).name == UPLOADING:
            raise error(
                f"{(source / each.name).parent} was not uploaded to its end, or is being written now: wait, or write it "
                f"again ({UPLOADING} says who began it)"
            )
    return listed


def staged(source: BucketPath, wanted: Sequence[str] = ("*",), unwanted: Sequence[str] = ()) -> Path:
    """Return a local copy of the objects below `source` whose names match; `*` goes through folders.

    Only what is not in the cache is downloaded.

    Raises:
      InputError: nothing is there, it was not uploaded to its end, or the bucket does not give it.
    """
    chosen = []
    for each in list_files(source):
        if _matches(each.name, wanted) and not _matches(each.name, unwanted):
            chosen.append(each)
    if not chosen:
        raise InputError(f"there is nothing in {source} that could be read")
    return _copy(source, chosen)


def staged_file(source: BucketPath) -> Path:
    """Return a local copy of one object.  Raises `InputError` as `staged` does."""
    try:
        stored = source.stat()
    except FileNotFoundError as error:
        bucket = f": {error.strerror}" if "bucket" in str(error.strerror) else ""
        raise InputError(f"there is no {source}{bucket}") from None
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from None
    return _copy(source.parent, [stored]) / stored.name


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@functools.cache
def _cache_of_this_process() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that goes with the process, for where no other is known."""
    return tempfile.TemporaryDirectory(prefix="psynth-")


def _copy(source: BucketPath, chosen: Sequence[Stored]) -> Path:
    described = repr([(each.name, each.size, each.generation) for each in chosen])
    fingerprint = hashlib.sha256(described.encode()).hexdigest()[:16]
    cache = known_cache_folder() or Path(_cache_of_this_process().name)
    place = cache / "buckets" / source.bucket / source.key / fingerprint
    if place.is_dir():
        return place
    part = place.with_name(f".{fingerprint}-{secrets.token_hex(4)}")
    try:
        _remove_old_parts(place.parent)
        part.mkdir(parents=True)
        _download(source, chosen, part)
        try:
            part.rename(place)
        except OSError:
            if not place.is_dir():  # else another process was faster, with the same content
                raise
    except (FileExistsError, FileNotFoundError):
        raise InputError(f"{source} is being written by somebody else: try again when that has ended") from None
    except BucketError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot copy {source} to {place}: {reason} (PSYNTH_CACHE names another folder)") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def _remove_old_parts(folder: Path) -> None:
    """Remove what killed processes have left of copies."""
    for part in folder.glob(".*-*"):
        if time.time() - part.stat().st_mtime > _PART_SECONDS:
            shutil.rmtree(part, ignore_errors=True)


def _download(source: BucketPath, chosen: Sequence[Stored], target: Path) -> None:
    total = sum(each.size for each in chosen)
    done = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running = {}
        for each in chosen:
            file = target / each.name
            file.parent.mkdir(parents=True, exist_ok=True)
            running[pool.submit((source / each.name).download, file, each.generation)] = each
        told = 0.0
        try:
            for finished in as_completed(running):
                finished.result()
                done += running[finished].size
                if time.monotonic() - told > 1:
                    told = time.monotonic()
                    _PROGRESS.info("downloading %s, %d of %d MB", source, done / 1e6, total / 1e6)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
