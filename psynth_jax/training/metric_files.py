"""The lines of a run's metrics: a file that grows, or, in a bucket, parts of one.

    WORKDIR/metrics.jsonl          on a disk
    WORKDIR/metrics_00001.jsonl    in a bucket, which knows no append: parts, read in the order of their names
    WORKDIR/metrics_00002.jsonl

The last part is written again as it grows, a few times a minute, until it has `PART_BYTES`; then another one begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from psynth_jax.errors import ConfigError
from psynth_jax.files import refuse_special
from psynth_jax.storage.paths import AnyPath, BucketPath

FILE = "metrics.jsonl"
_PARTS = "metrics_*.jsonl"
PART_BYTES = 256 << 10
PAUSE = 10.0  # seconds between two uploads of a part


def read_parts(file: AnyPath) -> bytes:
    """Return the lines of `file`, WORKDIR/metrics.jsonl, and of the parts next to it.

    Raises `OSError`; `FileNotFoundError` where there are none.
    """
    paths = list_parts(file.parent)
    if not paths:
        return file.read_bytes()  # which says in its own words that it is not there
    content = b""
    for path in paths:
        part = path.read_bytes()
        # A killed process may have left a torn line at the end of a part that was a file.
        content += part if path is paths[-1] or part.endswith(b"\n") else part + b"\n"
    return content


def list_parts(workdir: AnyPath) -> list[AnyPath]:
    """Return the files that have a run's lines, in their order."""
    parts: list[AnyPath] = list(workdir.glob(_PARTS))
    parts.sort(key=str)
    whole = workdir / FILE
    return [whole, *parts] if whole.is_file() else parts


class FileLines:
    """Appends to the last file of a run on a disk."""

    def __init__(self, workdir: Path):
        """Open the file; a last line that a killed process did not finish is cut off.

        Raises `ConfigError` for what is no regular file, and `OSError`.
        """
        path = (list_parts(workdir) or [workdir / FILE])[-1]
        assert isinstance(path, Path)
        refuse_special(path, ConfigError)
        if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Write a line."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Do nothing: every line has been written."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class BucketLines:
    """Writes further parts to a bucket, in a thread, so that no step waits for it."""

    def __init__(self, workdir: BucketPath, begin: int | None, check: Callable[[], None] = lambda: None):
        """Begin a part.  Lines of steps after `begin` are removed: they were lost with the run that wrote them.

        Args:
          check: called before each upload; it raises when the folder is another run's.

        Raises `OSError`, and what `check` raises.
        """
        self._workdir, self._check = workdir, check
        check()
        if begin is not None:
            _cut_after(workdir, begin)
        known = [path.name for path in list_parts(workdir)]
        numbers = [int(name[8:-6]) for name in known if name[8:-6].isdecimal()]
        self._part = _Part(max(numbers, default=0) + 1)
        self._waiting: list[bytes] = []  # lines that no upload has had
        self._uploaded_at = time.monotonic()
        self._uploads = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def write(self, values: Mapping[str, Any]) -> None:
        """Add a line.  It is uploaded within `PAUSE` seconds of later ones; what fails then is tried again."""
        self._waiting.append(json.dumps(values).encode() + b"\n")
        if time.monotonic() - self._uploaded_at > PAUSE and (self._running is None or self._running.done()):
            with contextlib.suppress(OSError):
                self._wait()
            self._start()

    def flush(self) -> None:
        """Upload all lines.  Raises `OSError`, and what `check` raises."""
        with contextlib.suppress(OSError):  # of an upload in between: all of it is tried again now
            self._wait()
        self._start()
        self._wait()

    def close(self) -> None:
        """Upload all lines and end.  Raises as `flush` does."""
        try:
            self.flush()
        finally:
            self._uploads.shutdown()

    def _start(self) -> None:
        self._uploaded_at = time.monotonic()
        lines, self._waiting = b"".join(self._waiting), []
        self._running = self._uploads.submit(self._upload, lines)

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _upload(self, lines: bytes) -> None:
        part = self._part
        part.content += lines
        if len(part.content) == part.uploaded:
            return
        self._check()
        path = self._workdir / part.name
        try:
            part.generation = path.write_bytes(part.content, only_over=part.generation)
        except FileExistsError:
            found, generation = path.read_with_generation()
            if not part.content.startswith(found):
                raise
            # An earlier write of this run, whose answer was lost.
            part.generation = path.write_bytes(part.content, only_over=generation)
        part.uploaded = len(part.content)
        if part.uploaded > PART_BYTES:
            self._part = _Part(part.number + 1)


@dataclasses.dataclass
class _Part:
    """What a part has, and how much of it is in the bucket, as which generation (0: it is not there)."""

    number: int
    content: bytes = b""
    uploaded: int = 0
    generation: int = 0

    @property
    def name(self) -> str:
        return f"metrics_{self.number:05}.jsonl"


def _cut_after(workdir: BucketPath, step: int) -> None:
    """Remove the lines of all later steps, from the last part on."""
    for path in reversed(list_parts(workdir)):
        assert isinstance(path, BucketPath)
        content = path.read_bytes()
        kept = b"".join(line for line in content.splitlines(keepends=True) if _step_of(line) <= step)
        if kept == content:
            continue
        if kept:
            path.write_bytes(kept)
        else:
            path.unlink()


def _step_of(line: bytes) -> int:
    """Return the step of a line; a line that is damaged has none, and stays where it is."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return -1
    return step if type(step) is int else -1
