"""What a back end gets to start a program with, and what it gives back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from psynth_jax.errors import SandboxError
from psynth_jax.sandbox import runtime
from psynth_jax.sandbox.folder import RunFolder
from psynth_jax.sandbox.messages import Job
from psynth_jax.sandbox.user import User


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: what was asked for, its folder, its user."""

    job: Job
    folder: RunFolder
    user: User

    def installed(self) -> list[str]:
        """Return the paths of the system and of Python, which the program cannot write to."""
        work = self.folder.work.resolve()
        found = []
        for path in (*runtime.SYSTEM_PATHS, self.job.runtime.python, *self.job.runtime.paths):
            # As the kernel names them, without links.
            real = Path(path).resolve()
            if not work.is_relative_to(real):
                found.append(str(real))
        return found


@dataclasses.dataclass(frozen=True)
class Started:
    """A program that runs.

    Attributes:
        leader: the process to wait for; it leads the group that all of them are in at first.
        status: a pipe on which a launcher tells how the program ended; None where the leader is
            the program.
        own_tasks: processes below the supervisor that are ours.
    """

    leader: int
    status: int | None = None
    own_tasks: int = 0


def fork_into(body: Callable[[], NoReturn], stdout: int, stderr: int) -> int:
    """Fork; in the child put the streams into place, and call `body`, which executes something.

    The child leads a session and group of its own.  Its stdin is empty.  Returns its process id.
    Raises `SandboxError` with what the child could not do.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (stdout, 1), (stderr, 2)):
                os.dup2(source, target)
            body()
        except BaseException as failed:  # noqa: BLE001  the supervisor says it
            os.write(tell, f"{type(failed).__name__}: {failed}".encode())
        os._exit(127)
    os.close(tell)
    with os.fdopen(told, "rb") as reader:
        message = reader.read()  # it ends when the child executes: the pipe is closed then
    if message:
        os.waitpid(child, 0)
        raise SandboxError(f"the sandbox could not be set up: {message.decode()}")
    return child
