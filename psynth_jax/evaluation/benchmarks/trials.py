"""A candidate program is tried on inputs: it runs in the sandbox, and its outputs are read here.

    program, cases ──> sandbox: harness.py calls the function ──> "nonce index {...}" ──> outputs
                                                                    right answers are only here

The program can print what it likes: what does not begin with the nonce of this run is passed over.
It can end early, print a line twice or break what it finds: then outputs are missing, and a missing
output is a wrong one.

Long reports come in pieces, each from a run of its own; nobody holds more than one of them:

    run 1   0 1 2 .. 40   (32 MiB)
    run 2                 41 42 ..
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from psynth_jax import sandbox
from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.sandboxed import harness, values

_OUTPUT = 2 * harness.MOST_TOLD  # bytes that a program may print
_LONGEST = values.LONGEST + 100  # characters of what is told of one call
_LATE = "Late"
_FILES = importlib.resources.files("psynth_jax.evaluation.benchmarks.sandboxed")


class Outcome(Protocol):
    """What is read of a run's end.

    exit_code: None where the sandbox ended the program.
    """

    @property
    def exit_code(self) -> int | None:
        """What the program exited with."""

    @property
    def stdout(self) -> str:
        """What it printed."""


# A program, files that lie beside it, and its time in seconds -> how it ended.
Run: TypeAlias = Callable[[str, Mapping[str, bytes], float], Outcome]


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds that a candidate has.

    call: of processor time, for one call; it may wait 4 times as long.  all: of wall time, for all
    calls together with the start.
    """

    call: float = 5.0
    all: float = 60.0


@dataclasses.dataclass(frozen=True)
class Output:
    """What one call gave.

    told: JSON, with what was returned.  error: the exception's class, "Late" for a call that took
    too long, "TooLarge" for a value that cannot be reported, "" for none.  seconds: of the call.
    """

    told: str
    error: str = ""
    seconds: float = 0.0

    def value(self) -> Any:
        """Return what was returned.  Raises `ValueError` for what no encoder writes.

        It is made each time that it is asked for: candidates decide how large all of them are.
        """
        try:
            return values.decode(json.loads(self.told).get("value"))
        except RecursionError:
            raise ValueError("the value is too deep") from None


def in_sandbox(program: str, files: Mapping[str, bytes], seconds: float) -> Outcome:
    """Run a program in the sandbox of this library.  Raises `UserError` where there is none."""
    limits = sandbox.Limits(seconds=seconds, output=_OUTPUT)
    return sandbox.run(program, limits=limits, files=files)


def encoded_cases(where: str, inputs: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return inputs, each a list of arguments, as JSON values.

    Raises `DataError` naming the line where one is too large or too deep.
    """
    cases = []
    for number, arguments in enumerate(inputs):
        try:
            cases.append([values.Encoder().encode(part) for part in arguments])
        except values.TooLargeError:
            told = f"input {number} is too deep or has too many values"
            raise DataError(f"{where}: {told}") from None
    return cases


def outputs_of(
    run: Run, program: str, entry_point: str, cases: Sequence[Sequence[Any]], times: Times
) -> Iterator[Output | None]:
    """Call a function of a program with one input after the other.

    Args:
      run: runs a program.
      program: what a model wrote.
      entry_point: name of the function.
      cases: inputs, as `encoded_cases` gives them.
      times: after a call that is too late no further one is made.

    Yields:
      An output for each case, None where there is none.  None of all cases means that the program
      could not be loaded or has no such function.
    """
    until = time.monotonic() + times.all
    start = 0
    while start < len(cases):
        left = max(0.001, until - time.monotonic())
        job = {"entry_point": entry_point, "seconds": times.call, "cases": cases[start:]}
        outputs, size = _tried(run, program, job, left)
        count = len(outputs)
        if size > harness.MOST_TOLD and time.monotonic() < until:
            count = _told_at_once(outputs) or count
        yield from outputs[:count]
        start += count


def try_program(
    run: Run, program: str, entry_point: str, cases: Sequence[Sequence[Any]], times: Times
) -> list[Output | None]:
    """Return all that `outputs_of` yields."""
    return list(outputs_of(run, program, entry_point, cases, times))


def _told_at_once(outputs: Sequence[Output | None]) -> int:
    """Return how many outputs there are up to the first one that is missing; 0 for a late one."""
    for count, output in enumerate(outputs):
        if output is None:
            return count
        if output.error == _LATE:
            return 0
    return len(outputs)


def _tried(
    run: Run,
    program: str,
    job: Mapping[str, Any],
    seconds: float,
) -> tuple[list[Output | None], int]:
    """Return the outputs of one run, None where there is none, and how much it printed."""
    nonce = secrets.token_hex(16)
    files = {
        "psynth_job.json": json.dumps({**job, "nonce": nonce}).encode(),
        "psynth_values.py": _sent("values.py"),
        "psynth_candidate.py": program.encode("utf-8", "replace"),
    }
    stdout = run(_sent("harness.py").decode(), files, seconds).stdout
    return _reported(stdout, nonce, len(job["cases"])), len(stdout)


def run_test(run: Run, program: str, seconds: float = 10.0) -> bool:
    """Return whether a program with its tests behind it runs to its end without an exception.

    The program runs in the process that tells so: one that looks for it can tell so itself.
    """
    nonce = secrets.token_hex(16)
    files = {
        "psynth_program.py": program.encode("utf-8", "replace"),
        "psynth_nonce": nonce.encode(),
    }
    outcome = run(_PUBLISHED, files, seconds)
    return outcome.exit_code == 0 and nonce in outcome.stdout.splitlines()


# The published code runs programs by `exec`, under another name than "__main__"; so does a module.
_PUBLISHED = """\
import importlib.util, os, sys

def run():
    with open("psynth_nonce") as file:
        nonce = file.read()
    os.unlink("psynth_nonce")  # no file has it when the program begins
    sys.dont_write_bytecode = True
    path = os.path.abspath("psynth_program.py")
    spec = importlib.util.spec_from_file_location("psynth_program", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["psynth_program"] = module
    spec.loader.exec_module(module)
    print("\\n" + nonce, flush=True)

run()
"""


def _sent(name: str) -> bytes:
    return _FILES.joinpath(name).read_bytes()


def _reported(stdout: str, nonce: str, count: int) -> list[Output | None]:
    found: list[Output | None] = [None] * count
    seen = set()
    for line in stdout.split("\n"):
        if not line.startswith(f"{nonce} "):
            continue
        _, _, rest = line.partition(" ")
        number, _, content = rest.partition(" ")
        index = int(number) if number.isdecimal() and len(number) < 9 else -1
        if index in seen or not 0 <= index < count:
            # The harness tells each output once; a report with more was tampered with.
            return [None] * count
        seen.add(index)
        if len(content) <= _LONGEST:
            found[index] = _output(content)
    return found


def _output(content: str) -> Output | None:
    try:
        told = json.loads(content)
        seconds = float(told["seconds"])
        if "error" in told:
            return Output("{}", str(told["error"]) or "Exception", seconds)
        return Output(content, seconds=seconds) if "value" in told else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
