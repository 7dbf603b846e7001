"""Ask the server for runs.  It is started when it is first needed, and serves all threads."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

from psynth_jax.errors import SandboxError
from psynth_jax.sandbox import bubblewrap, messages
from psynth_jax.sandbox.limits import Limits
from psynth_jax.sandbox.messages import Job
from psynth_jax.sandbox.outcome import KilledFor, Outcome
from psynth_jax.sandbox.runtime import Runtime, this_python

# With -I and -S nothing of an environment is on the path, and no file of it is run.  Ours comes
# last: beside an installed package lie others, which are not to stand for Python's own modules.
_START = """
import sys
sys.path.append(sys.argv[1])
from psynth_jax.sandbox.server import main
main()
"""
_ROOT = str(Path(__file__).resolve().parents[2])


class _Server:
    """The server of this process."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-I", "-S", "-B", "-c", _START, _ROOT]
        # Our environment holds secrets, perhaps; the server's is next to the program's process.
        variables = {name: os.environ[name] for name in ("TMPDIR",) if name in os.environ}
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [*command, str(theirs.fileno()), str(self.owner)],
                    pass_fds=[theirs.fileno()],
                    env=variables,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the client, who then leaves
                )
        except OSError:
            self.control.close()
            raise
        atexit.register(self.close)

    def close(self) -> None:
        """End the server, unless it is that of the process that this one was forked from."""
        if self.owner != os.getpid():
            return
        with contextlib.suppress(OSError):  # it is gone already
            # A fork of this process may still hold a copy of the socket: to close ours is no end.
            self.control.shutdown(socket.SHUT_RDWR)
        self.control.close()
        self.process.wait()

    def usable(self) -> bool:
        """Whether it is this process's own, not that of one that it was forked from, and lives."""
        return self.owner == os.getpid() and self.process.poll() is None

    def connect(self) -> socket.socket:
        """Return a connection to a supervisor of its own.

        Raises `OSError` where the server is gone.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self.control, [b"r"], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        return ours


_lock = threading.Lock()
_server: _Server | None = None


def _usable_server() -> _Server:
    global _server
    with _lock:
        if _server is None or not _server.usable():
            _server = _Server()
        return _server


def job_for(backend: str, program: bytes, files: dict[str, bytes], limits: Limits) -> Job:
    """Return the job that runs a program with this process's Python."""
    return Job(program, files, limits, backend, runtime_here(), bubblewrap.find())


@functools.cache
def runtime_here() -> Runtime:
    """Describe the Python that runs this process; it is looked for once."""
    return this_python()


def _connection() -> socket.socket:
    try:
        return _usable_server().connect()
    except OSError:  # the server has died since it was looked at, or it cannot be started
        return _usable_server().connect()


def ask(job: Job) -> Outcome:
    """Run a job and wait for its outcome.

    Raises `SandboxError` where the back end does not work here, or is killed.
    """
    try:
        connection = _connection()
    except OSError as failed:
        raise SandboxError(f"the server of the sandbox cannot be reached: {failed}") from None
    try:
        with connection:
            messages.send(connection, job.to_json())
            answer = messages.receive(connection)
    except OSError:  # it has closed its end before it had read or said all
        answer = None
    if answer is None:
        raise SandboxError("the supervisor of the sandbox has died; was it killed?")
    if "error" in answer:
        raise SandboxError(answer["error"])
    return _outcome(answer)


def _outcome(answer: dict[str, Any]) -> Outcome:
    killed_for = cast(KilledFor | None, answer["killed_for"])
    return Outcome(
        exit_code=answer["exit_code"],
        timed_out=killed_for == "time",
        killed_for=killed_for,
        stdout=messages.to_bytes(answer["stdout"]).decode("utf-8", "replace"),
        stderr=messages.to_bytes(answer["stderr"]).decode("utf-8", "replace"),
        seconds=answer["seconds"],
    )
