"""stdin, stdout and stderr that never lose an answer: any encoding, a full disk, a reader that has left, none at all.

Imports the standard library and errors only; see `psynth_jax.cli`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from psynth_jax.errors import UserError


class OutputError(UserError):
    """Standard output cannot be written."""


class _Output(io.FileIO):
    """Standard output: what the system says against a write becomes one line."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:  # whoever read has left: the command ends quietly
            raise
        except OSError as error:
            raise OutputError(f"cannot write to standard output: {error.strerror}") from None


class _Messages(io.FileIO):
    """Standard error: a message that cannot be written must not end the work."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare() -> None:
    """Make the three streams safe to use.  Streams that somebody has replaced, as tests do, are left alone."""
    _open_what_is_closed()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _wrapped(_Output, sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        # A descriptor of its own: what libraries in C++ write to 2 can be dropped while our own messages are shown.
        sys.stderr = _wrapped(_Messages, sys.stderr, os.dup(2))


def close(code: int) -> int:
    """Write what is buffered; return the exit code: `code`, if that went well."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return code or 1
    except OutputError as error:
        _drop_output()
        if code == 0:
            sys.stderr.write(f"error: {error}\n")
        return code or 2
    return code


def is_unicode(stream: Any) -> bool:
    """Whether a stream can take any character."""
    return str(getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def _open_what_is_closed() -> None:
    """Give closed streams the null device: the next file that is opened would take their numbers, and their output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False, encoding="utf-8"))  # noqa: SIM115


def _wrapped(kind: type[io.FileIO], stream: Any, number: int) -> io.TextIOWrapper:
    """Return a stream on a descriptor; characters that it has no code for are written as escapes."""
    with contextlib.suppress(OSError):
        stream.flush()
    raw = kind(number, "w", closefd=False)
    line_buffering = number != 1 or stream.isatty()
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=line_buffering)


def _drop_output() -> None:
    """Let what is still buffered go nowhere, or the interpreter complains when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
