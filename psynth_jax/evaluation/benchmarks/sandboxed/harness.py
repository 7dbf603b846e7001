"""Calls a function of a candidate program on one input after the other; reports what it returns.

This file is the program that the sandbox runs.  Beside it lie

    psynth_job.json        {"nonce", "entry_point", "seconds", "cases"}
    psynth_values.py       values.py of this folder
    psynth_candidate.py    what a model wrote

Each line of a report is "nonce index {...}": {"value": ..} or {"error": "ValueError"}, and "seconds"
of the call.  The right answers are not here, so a candidate that tampers with the report can only
spoil it.
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
from typing import Any

TOO_LARGE = "TooLarge"


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
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        setattr(sys, name, Nowhere())
    # Where there is no device for it, what is written past Python stands in the report, as lines
    # without the nonce.
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)


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
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {**content, "seconds": round(clock() - start, 6)}


def main() -> None:
    """Do the job that lies in this folder."""
    report = os.dup(1)
    silence()
    sys.dont_write_bytecode = True
    job = json.loads(Path("psynth_job.json").read_text(encoding="utf-8"))
    dump, write = json.dumps, os.write

    def tell(index: int, content: dict[str, Any]) -> None:
        # A line of its own, whatever the candidate has written past Python.
        line = f"\n{job['nonce']} {index} {dump(content)}\n".encode()
        while line:
            line = line[write(report, line) :]

    values = load("psynth_values")
    signal.signal(signal.SIGALRM, on_alarm)
    # It fires again where a candidate catches everything and goes on.
    signal.setitimer(signal.ITIMER_REAL, job["seconds"], 1.0)
    try:
        function = getattr(load("psynth_candidate"), job["entry_point"])
    except BaseException:  # noqa: BLE001  whatever it raises, there is no function to call
        os._exit(1)
    for index, case in enumerate(job["cases"]):
        # Decoded for this call alone: what a candidate does to its arguments is gone afterwards.
        arguments = [values.decode(part) for part in case]
        signal.setitimer(signal.ITIMER_REAL, job["seconds"], 1.0)
        content = attempt(function, arguments, values)
        tell(index, content)
        if content.get("error") == "Late":
            break
    os._exit(0)


if __name__ == "__main__":
    with contextlib.suppress(Late):
        main()
