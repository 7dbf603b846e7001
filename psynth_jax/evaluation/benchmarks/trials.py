"""A candidate program is tried on inputs: it runs in the sandbox, and its outputs are read here.

    program, cases ──> sandbox: harness.py calls the function ──> "nonce index {...}" ──> outputs
                                                                    right answers are only here

The program can print what it likes: what does not begin with the nonce of this run is passed over.
It can end early, print a line twice or break what it finds: then outputs are missing, and a missing
output is a wrong one.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.sandboxed import values

_OUTPUT = 64 << 20  # bytes that a program may print
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
    """Seconds that a candidate has: for one call, and for all of them together with its start."""

    call: float = 5.0
    all: float = 60.0


@dataclasses.dataclass(frozen=True)
class Output:
    """What one call gave.

    value: what was returned; None where it raised.  error: the exception's class, "Late" for a call
    that took too long, "TooLarge" for a value that cannot be reported, "" for none.  seconds: of
    the call.
    """

    value: Any
    error: str = ""
    seconds: float = 0.0


def in_sandbox(program: str, files: Mapping[str, bytes], seconds: float) -> Outcome:
    """Run a program in the sandbox of this library.  Raises `UserError` where there is none."""
    from psynth_jax import sandbox

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


def try_program(
    run: Run, program: str, entry_point: str, cases: Sequence[Sequence[Any]], times: Times
) -> list[Output | None]:
    """Call a function of a program with one input after the other.

    Args:
      run: runs a program.
      program: what a model wrote.
      entry_point: name of the function.
      cases: inputs, as `encoded_cases` gives them.
      times: after a call that is too late no further one is made.

    Returns:
      An output for each case, None where there is none.  None of all cases means that the program
      could not be loaded or has no such function.
    """
    nonce = secrets.token_hex(16)
    job = {"nonce": nonce, "entry_point": entry_point, "seconds": times.call, "cases": cases}
    files = {
        "psynth_job.json": json.dumps(job).encode(),
        "psynth_values.py": _sent("values.py"),
        "psynth_candidate.py": program.encode("utf-8", "replace"),
    }
    outcome = run(_sent("harness.py").decode(), files, times.all)
    return _reported(outcome.stdout, nonce, len(cases))


def run_test(run: Run, program: str, seconds: float = 10.0) -> bool:
    """Return whether a program with its tests behind it runs to its end without an exception."""
    nonce = secrets.token_hex(16)
    files = {"psynth_program.py": program.encode("utf-8", "replace")}
    outcome = run(_PUBLISHED.format(nonce=nonce), files, seconds)
    return outcome.exit_code == 0 and nonce in outcome.stdout.splitlines()


# The published code runs programs by `exec`, under another name than "__main__"; so does a module.
_PUBLISHED = """\
import importlib.util, os, sys
sys.dont_write_bytecode = True
path = os.path.abspath("psynth_program.py")
spec = importlib.util.spec_from_file_location("psynth_program", path)
module = importlib.util.module_from_spec(spec)
sys.modules["psynth_program"] = module
spec.loader.exec_module(module)
print("\\n{nonce}", flush=True)
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
        found[index] = _output(content)
    return found


def _output(content: str) -> Output | None:
    try:
        told = json.loads(content)
        seconds = float(told["seconds"])
        if "error" in told:
            return Output(None, str(told["error"]) or "Exception", seconds)
        return Output(values.decode(told["value"]), seconds=seconds)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
