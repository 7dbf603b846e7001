"""Run programs in the first back end that works here."""

from __future__ import annotations

from collections.abc import Mapping

from psynth_jax.errors import InputError, SandboxError, listing, shown
from psynth_jax.sandbox import client, selftest
from psynth_jax.sandbox.limits import Limits
from psynth_jax.sandbox.outcome import Outcome

_LONGEST_NAME = 255  # bytes

CHOICES = ("auto", *selftest.BACKENDS)


class Sandbox:
    """A back end that has passed its self-test, and limits: for many runs, from any thread.

    Args:
        limits: of each run.
        backend: `auto` takes bubblewrap if it works here, else Landlock.

    Raises `SandboxError` where no back end works, saying what is lacking, and `InputError` for a
    back end of another name.
    """

    def __init__(self, limits: Limits | None = None, backend: str = "auto") -> None:
        self.limits = limits or Limits()
        self.backend = choose(backend)

    def run(
        self,
        program_text: str,
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
    ) -> Outcome:
        """Run a Python program, and wait until it, and all that it started, has ended.

        That a program exits with 0 says that it exited with 0, no more: it may do so before its
        tests have run.

        Args:
            program_text: the program.
            files: content of files in its working directory, by name.
            limits: others than those of this sandbox.

        Raises `InputError` for names that lead out of the folder and for files over the limit, and
        `SandboxError` when the back end stops working.
        """
        bounds = limits or self.limits
        given = dict(files or {})
        _check_files(given, bounds)
        program = program_text.encode("utf-8", "surrogatepass")
        return client.ask(client.job_for(self.backend, program, given, bounds))


def run(
    program_text: str,
    limits: Limits | None = None,
    backend: str = "auto",
    files: Mapping[str, bytes] | None = None,
) -> Outcome:
    """Run one Python program; see `Sandbox`, which this makes.  The self-test is not repeated."""
    return Sandbox(limits, backend).run(program_text, files)


def choose(backend: str) -> str:
    """Return the back end that is to be used; see `Sandbox`."""
    if backend not in CHOICES:
        raise InputError(f"backend is {shown(backend)}; it must be one of {', '.join(CHOICES)}")
    wanted = selftest.BACKENDS if backend == "auto" else (backend,)
    faults = []
    for name in wanted:
        fault = selftest.fault(name)
        if fault is None:
            return name
        faults.append(f"{name}: {fault}")
    raise SandboxError(f"no sandbox is to be had here: {listing(faults)}")


def _check_files(files: Mapping[str, bytes], limits: Limits) -> None:
    for name in files:
        encoded = name.encode("utf-8", "replace")
        plain = name.isprintable() and "/" not in name and name not in ("", ".", "..")
        if not plain or len(encoded) > _LONGEST_NAME:
            raise InputError(f"a file is named {shown(name)}; a plain name without / is needed")
    total = sum(len(content) for content in files.values())
    if total > limits.files:
        raise InputError(f"the files have {total} bytes; the limit is {limits.files}")
