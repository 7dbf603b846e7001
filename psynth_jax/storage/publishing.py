"""Directories that are written to a bucket: made on this disk first, uploaded as a whole, and marked until they are.

No store of objects can rename a folder.  So an object, `.psynth-uploading`, is there from before the first change until
after the last one: who reads a directory that has it, reads nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from psynth_jax.errors import InputError
from psynth_jax.storage.paths import BucketPath
from psynth_jax.storage.staging import UPLOADING

_AT_ONCE = 8  # uploads
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
      InputError: `target` holds anything else.
      OSError: the bucket does not take it.
    """
    before = _refuse_others(target, names, what)
    with tempfile.TemporaryDirectory(prefix="psynth-") as scratch:
        fresh = Path(scratch)
        yield fresh
        _upload(fresh, target, before)


def _refuse_others(target: BucketPath, names: Collection[str], what: str) -> set[str]:
    """Return the names of the objects that are at `target`."""
    if not target.key:
        raise InputError(f"{target} is a whole bucket: name a folder in it")
    if target.is_file():
        raise InputError(f"{target} exists and is not {what}: it is a single object; choose another name")
    there = {each.name for each in target.files()}
    if UPLOADING not in there:
        strange = sorted(name for name in there if name.partition("/")[0] not in names)
        if strange:
            raise InputError(f"{target} exists and is not {what}: it has {strange[0]}; choose another name")
    return there


def _upload(fresh: Path, target: BucketPath, before: set[str]) -> None:
    files = sorted(path for path in fresh.rglob("*") if path.is_file())
    mark = target / UPLOADING
    begun = {"host": socket.gethostname(), "pid": os.getpid(), "begun": time.time()}
    mark.write_text(json.dumps(begun) + "\n")
    written = set()
    total, done = sum(path.stat().st_size for path in files), 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running = []
        for path in files:
            name = path.relative_to(fresh).as_posix()
            written.add(name)
            running.append((pool.submit((target / name).upload, path), path.stat().st_size))
        try:
            for upload, size in running:
                upload.result()
                done += size
                _PROGRESS.info("uploading %s, %d of %d MB", target, done / 1e6, total / 1e6)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for name in sorted(before - written - {UPLOADING}):
        (target / name).unlink(missing_ok=True)
    mark.unlink()
