"""Files of JSON lines that grow while a run goes on, one for every process that writes.

    DIR/rows.jsonl              a process alone
    DIR/rows.2-of-4.jsonl       the second of four processes

A line is complete when it has ended.  A process that dies leaves at most one without an end: whoever writes to the file next
cuts it off, others pass over it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from psynth_jax.data.json_values import read_json_values
from psynth_jax.errors import InputError, shown
from psynth_jax.files import drop_torn_line, refuse_special


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of the questions a process asks: every `count`-th, from the one at `number` (from 1) on."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        """Raise `InputError` for a number that is not from 1 to `count`."""
        if not 1 <= self.number <= self.count:
            raise InputError(f"shard {self.number}/{self.count}: the number must be from 1 to {self.count}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/4".  Raises `InputError` for another form."""
        number, slash, count = text.partition("/")
        if not slash or not number.isdecimal() or not count.isdecimal() or len(text) > 20:
            raise InputError(f"shard is {shown(text)}; it must be NUMBER/COUNT, as in 2/4")
        return cls(int(number), int(count))

    def of(self, items: list[Any]) -> list[Any]:
        """Return this process's part."""
        return items[self.number - 1 :: self.count]


class Lines:
    """The lines of a kind in a folder: all files are read, one is written."""

    def __init__(self, folder: Path, kind: str, shard: Shard):
        """Name them.  kind: "rows" for rows.jsonl and rows.*-of-*.jsonl."""
        self.folder, self.kind = folder, kind
        own = f"{kind}.jsonl" if shard.count == 1 else f"{kind}.{shard.number}-of-{shard.count}.jsonl"
        self.path = folder / own
        self._file: TextIO | None = None

    def read(self) -> Iterator[tuple[str, Any]]:
        """Go through all values with where they stand, as in `rows.jsonl:3`.

        Raises:
          DataError: naming file and line of what is not JSON.
          InputError: a file cannot be read.
        """
        paths = [self.folder / f"{self.kind}.jsonl", *sorted(self.folder.glob(f"{self.kind}.*-of-*.jsonl"))]
        for path in paths:
            if not path.exists():
                continue
            refuse_special(path)
            if path == self.path and not _is_locked(path):
                drop_torn_line(path)
            complete = _complete_lines(path)
            if not complete:
                continue
            for number, value in read_json_values(path):
                yield f"{path}:{number}", value
                if number == complete:
                    break  # the rest is being written

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep the own file open for `append`.  Raises `InputError` when it cannot be written."""
        try:
            refuse_special(self.path)
            file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}") from None
        with file:
            try:
                # It ends with the process, however that ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{self.path} is being written by another process: give each a --shard") from None
            self._file = file
            try:
                yield
            finally:
                self._file = None

    def append(self, value: Any) -> None:
        """Write a line to the end, and out of this process.  Raises `InputError` when the disk does not take it."""
        assert self._file is not None, "lines are added inside of open()"
        try:
            self._file.write(json_text(value) + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; the lines before are kept") from None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time sum a folder up, so that the last one has seen all rows."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_locked(path: Path) -> bool:
    """Whether a process is writing a file."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON, on one line without an indent; what UTF-8 cannot encode is escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def _complete_lines(path: Path) -> int:
    """Count the lines that have ended; another process may be writing the next."""
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
