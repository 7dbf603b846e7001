"""Calls a function of a candidate program on one input after the other; reports what it returns.

This file is the program that the sandbox runs.  Beside it lie

    psynth_job.json        {"nonce", "entry_point", "seconds", "cases"}
    psynth_values.py       values.py of this folder
    psynth_candidate.py    what a model wrote

Each line of a report is "nonce index {...}": {"value": ..} or {"error": "ValueError"}, and
"seconds" of the call.  A report of more than 32 MiB ends early, and another run goes on behind it.
The right answers are not here, so a candidate that tampers with the report can only spoil it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import signal
import sys
from pathlib import Path
from time import perf_counter as clock
from types import FrameType, ModuleType
from typing import Any, TextIO, cast

TOO_LARGE = "TooLarge"
MOST_TOLD = 32 << 20  # bytes of a report, behind which it ends
WAITING = 4  # a call may take so many times its processor time, on a busy machine


class Late(BaseException):
    """The time of one call is over."""


def load(name: str) -> ModuleType:
    """Run a file of this folder as a module."""
    path = Path.cwd() / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


class Nowhere(io.TextIOBase):
    """Takes what a candidate prints and drops it."""

    def write(self, text: str) -> int:
        """Drop a text."""
        return len(text)


def silence() -> None:
    """Let the candidate's output go nowhere: what it prints is no report."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = nowhere(number)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def nowhere(number: int) -> TextIO:
    """Let a descriptor lead nowhere, and return a stream for it.

    Programs ask a stream for its buffer, its encoding or its descriptor.  Where there is no device
    for it, what is written past Python stands in the report, as lines without the nonce.
    """
    try:
        device = os.open(os.devnull, os.O_WRONLY)
    except OSError:
        return cast(TextIO, Nowhere())
    os.dup2(device, number)
    os.close(device)
    return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def allow(seconds: float) -> None:
    """Let what follows take so many seconds of processor time; 0 is for ever.

    A timer fires again where a candidate catches everything and goes on.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    signal.setitimer(signal.ITIMER_REAL, WAITING * seconds, 1.0)


def on_alarm(number: int, frame: FrameType | None) -> None:
    """End a call that takes too long."""
    raise Late


def attempt(function: Any, arguments: list[Any], values: ModuleType) -> dict[str, Any]:
    """Call the function once and return what is reported of it."""
    start = clock()
    try:
        content = {"value": values.reported(function(*arguments))}
    except Late:
        content = {"error": "Late"}
    except values.TooLargeError:
        content = {"error": TOO_LARGE}
    except BaseException as error:  # noqa: BLE001  candidates raise anything, SystemExit, too
        content = {"error": type(error).__name__}
    finally:
        allow(0)
    return {**content, "seconds": round(clock() - start, 6)}


def main() -> None:
    """Do the job that lies in this folder."""
    report = os.dup(1)
    silence()
    sys.dont_write_bytecode = True
    job = json.loads(Path("psynth_job.json").read_text(encoding="utf-8"))
    dump, write = json.dumps, os.write

    def tell(index: int, content: dict[str, Any]) -> int:
        # A line of its own, whatever the candidate has written past Python.
        line = f"\n{job['nonce']} {index} {dump(content)}\n".encode()
        size = len(line)
        while line:
            line = line[write(report, line) :]
        return size

    values = load("psynth_values")
    for timer in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(timer, on_alarm)
    allow(job["seconds"])
    try:
        function = getattr(load("psynth_candidate"), job["entry_point"])
    except BaseException:  # noqa: BLE001  whatever it raises, there is no function to call
        os._exit(1)
    told = 0
    for index, case in enumerate(job["cases"]):
        # Decoded for this call alone: what a candidate does to its arguments is gone afterwards.
        arguments = [values.decode(part) for part in case]
        allow(job["seconds"])
        content = attempt(function, arguments, values)
        told += tell(index, content)
        if told > MOST_TOLD or content.get("error") == "Late":
            break
    os._exit(0)


if __name__ == "__main__":
    with contextlib.suppress(Late):
        main()
