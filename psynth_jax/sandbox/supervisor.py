"""One run, from its folder to its last process: start, watch, kill, clean up.

    client ── job ──> supervisor ──> program ──> its children ...
           <─ outcome ─┘   └ watches them all (`watch`), kills them all

The supervisor is a process of one thread, for one run.  It ends the run as well when the client is
gone: its end of the connection is closed then, or the server, the supervisor's parent, is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from psynth_jax.errors import SandboxError, UserError
from psynth_jax.sandbox import (
    bubblewrap,
    folder,
    kernel,
    landlocked,
    launcher,
    messages,
    processes,
    user,
)
from psynth_jax.sandbox.folder import RunFolder
from psynth_jax.sandbox.messages import Job
from psynth_jax.sandbox.run_parts import Run
from psynth_jax.sandbox.runtime import open_to_all
from psynth_jax.sandbox.streams import Streams
from psynth_jax.sandbox.watch import Reason, Watch

_BACKENDS = {bubblewrap.NAME: bubblewrap.start, landlocked.NAME: landlocked.start}

_PAUSE = 0.001  # seconds between two attempts to reap
_LAST_WAIT = 10.0  # seconds until killed processes must be gone


def serve(connection: socket.socket, name: str) -> None:
    """Do the one job that comes over a connection, and answer with its outcome or an error.

    `name` is that of the run's folder.
    """
    value = messages.receive(connection)
    if value is None:
        return
    try:
        answer = _run(Job.from_json(value), connection, name)
    except UserError as failed:
        answer = {"error": str(failed)}
    except Exception as failed:  # noqa: BLE001  nobody else would hear of it
        answer = {"error": f"the supervisor failed: {type(failed).__name__}: {failed}"}
    if answer is not None:
        messages.send(connection, answer)


def _run(job: Job, connection: socket.socket, name: str) -> dict[str, Any] | None:
    """Run a job; None when the client has left."""
    kernel.adopt_orphans()
    hidden = job.runtime.hidden_from_others() if job.backend == landlocked.NAME else None
    chosen = user.choose(hidden)
    made = folder.make(job.program, job.files, chosen, _parent_folder() / name)
    try:
        stdout, out = os.pipe()
        stderr, err = os.pipe()
        started_at = time.monotonic()
        run = Run(job, made, chosen)
        started = _BACKENDS[job.backend](run, out, err)
        os.close(out)
        os.close(err)
        streams = Streams(stdout, stderr, job.limits.output)
        watch = Watch(run, started, streams, connection)
        try:
            reason = watch.until_end(started_at + job.limits.seconds)
        finally:
            status = _kill_all(started.leader)
        seconds = time.monotonic() - started_at
        streams.drain()
        if reason == "abandoned":
            return None
        if started.status is not None and reason is None:
            status = _told_status(started.status, streams)
        return _answer(watch.last_reason(reason), status, streams, seconds)
    finally:
        made.remove()


def _parent_folder() -> Path:
    """Return the folder for temporary files; if others may not pass through it, another one."""
    for place in _temporary_folders():
        if os.geteuid() != 0 or open_to_all(place):
            return place
    raise SandboxError("no folder for temporary files is open to all users; set TMPDIR to one")


def _temporary_folders() -> list[Path]:
    return [Path(place) for place in (tempfile.gettempdir(), "/tmp", "/var/tmp")]


def remove_left(name: str) -> None:
    """Remove the folder of a supervisor that could not do it itself; there may be none."""
    for place in _temporary_folders():
        with contextlib.suppress(OSError):
            RunFolder(place / name).remove()


def _kill_all(leader: int) -> int:
    """Kill every process of the run, and wait until none is left; return the leader's status.

    Under Landlock all of them are in the leader's group, which dies at once: a process that forks
    meanwhile loses the race.  In a namespace they die with its first process.
    """
    status = 0
    until = time.monotonic() + _LAST_WAIT
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    while time.monotonic() < until:
        for process in processes.descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        try:
            ended, word = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if ended == leader:
            status = word
        if ended == 0:
            time.sleep(_PAUSE)
    raise SandboxError("processes of the run could not be killed: the kernel holds them")


def _told_status(pipe: int, streams: Streams) -> int:
    """Return the status that the launcher told.  Without one, a signal has ended the launcher.

    Raises `SandboxError` when the launcher has not even started.
    """
    with os.fdopen(pipe, "rb") as reader:
        told = reader.read()
    before, _, word = told.partition(launcher.STARTED)
    if before or not told:
        said = " ".join(streams.stderr.decode(errors="replace").split())
        raise SandboxError(f"bubblewrap does not work here: {said or 'it says nothing'}")
    return int(word) if word else int(signal.SIGKILL)


def _answer(reason: Reason | None, status: int, streams: Streams, seconds: float) -> dict[str, Any]:
    code: int | None = os.waitstatus_to_exitcode(status)
    killed_for: str | None = reason
    if reason is not None:
        code = None
    elif os.WIFSIGNALED(status):
        killed_for = "signal"
    return {
        "exit_code": code,
        "killed_for": killed_for,
        "stdout": messages.to_text(streams.stdout),
        "stderr": messages.to_text(streams.stderr),
        "seconds": seconds,
    }
