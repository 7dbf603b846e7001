"""One run, from its folder to its last process: start, watch, kill, clean up.

    client ── job ──> supervisor ──> program ──> its children ...
           <─ outcome ─┘   └ polls /proc every 10 ms, kills for what is over a limit

The supervisor is a process of one thread, for one run.  It ends the run as well when the client is
gone: its end of the connection is closed then, or the server, the supervisor's parent, is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

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
from psynth_jax.sandbox.run_parts import Run, Started
from psynth_jax.sandbox.runtime import open_to_all
from psynth_jax.sandbox.streams import Streams

_BACKENDS = {bubblewrap.NAME: bubblewrap.start, landlocked.NAME: landlocked.start}

_LOOK = 0.010  # seconds between two looks at processes and memory
_LOOKS_AT_FILES = 5  # each so many looks the files are counted, too
_PAUSE = 0.001  # seconds between two attempts to reap
_LAST_WAIT = 10.0  # seconds until killed processes must be gone
_SERVER = secrets.token_hex(4)  # drawn by the server, which the supervisors are forks of

Reason = Literal["time", "memory", "processes", "output", "files", "abandoned"]


def serve(connection: socket.socket) -> None:
    """Do the one job that comes over a connection, and answer with its outcome or an error."""
    value = messages.receive(connection)
    if value is None:
        return
    try:
        answer = _run(Job.from_json(value), connection)
    except (UserError, OSError) as failed:
        answer = {"error": str(failed)}
    if answer is not None:
        messages.send(connection, answer)


def _run(job: Job, connection: socket.socket) -> dict[str, Any] | None:
    """Run a job; None when the client has left."""
    kernel.adopt_orphans()
    hidden = job.runtime.hidden_from_others() if job.backend == landlocked.NAME else None
    chosen = user.choose(hidden)
    prefix = _folder_prefix(os.getpid())
    made = folder.make(job.program, job.files, chosen, _parent_folder(), prefix)
    try:
        stdout, out = os.pipe()
        stderr, err = os.pipe()
        started_at = time.monotonic()
        started = _BACKENDS[job.backend](Run(job, made, chosen), out, err)
        os.close(out)
        os.close(err)
        streams = Streams(stdout, stderr, job.limits.output)
        watch = _Watch(job, made, chosen, started, streams, connection)
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


def _folder_prefix(supervisor: int) -> str:
    return f"psynth-sandbox-{_SERVER}-{supervisor}-"


def remove_folder_of(supervisor: int) -> None:
    """Remove what a supervisor of this server has left that could not do it itself."""
    for place in _temporary_folders():
        for left in place.glob(f"{_folder_prefix(supervisor)}*"):
            with contextlib.suppress(OSError):
                RunFolder(left).remove()


class _Watch:
    """Look at a run until it ends or is over a limit."""

    def __init__(
        self,
        job: Job,
        made: RunFolder,
        chosen: user.User,
        started: Started,
        streams: Streams,
        connection: socket.socket,
    ) -> None:
        self.limits = job.limits
        self.folder = made
        self.user = chosen
        self.started = started
        self.streams = streams
        self.connection = connection.fileno()
        self.parent = os.getppid()
        self.looks = 0
        self.hidden: frozenset[Path] = frozenset()

    def until_end(self, deadline: float) -> Reason | None:
        """Return why the run must be killed, or None when its leader has ended by itself."""
        leader = os.pidfd_open(self.started.leader)
        poll = select.poll()
        for descriptor in (*self.streams.open, self.connection, leader):
            poll.register(descriptor, select.POLLIN)
        next_look = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= deadline:
                return "time"
            if now >= next_look:
                if (reason := self._look()) is not None:
                    return reason
                next_look = time.monotonic() + _LOOK
            wait = max(0.0, min(deadline, next_look) - time.monotonic())
            for descriptor, _ in poll.poll(wait * 1000):
                if descriptor == self.connection:
                    return "abandoned"
                if descriptor == leader:
                    return None
                self.streams.read(descriptor)
                if self.streams.over:
                    return "output"
                if descriptor not in self.streams.open:
                    poll.unregister(descriptor)

    def _look(self) -> Reason | None:
        if os.getppid() != self.parent:
            return "abandoned"
        self.looks += 1
        self._reap_orphans()
        found = processes.descendants(os.getpid())
        used = processes.usage(found)
        if used.tasks - self.started.own_tasks > self.limits.processes:
            return "processes"
        if used.memory > self.limits.memory and self._memory(found, used.memory):
            return "memory"
        if self.looks % _LOOKS_AT_FILES == 0 and self._files_over(found):
            return "files"
        return None

    def _reap_orphans(self) -> None:
        """Reap who has lost its parent and ended.  The leader stays: its id must stay its own."""
        for child in processes.children(os.getpid()):
            if child != self.started.leader:
                os.waitpid(child, os.WNOHANG)

    def _memory(self, found: list[int], most: int) -> bool:
        """Whether the memory is over the limit, with each shared page counted once."""
        with _eyes_of(self.user):
            shared_out = processes.shared_out_memory(found)
        used = most if shared_out is None else shared_out
        return used > self.limits.memory

    def _files_over(self, found: list[int]) -> bool:
        with _eyes_of(self.user):
            deleted = processes.deleted_files(found, self.user.uid)
        # Python itself can be looked at.  Who cannot at two looks has executed something else, and
        # who maps a file that is deleted and closed hides its size: neither is an accident.
        hiding = deleted.hidden & self.hidden
        self.hidden = deleted.hidden
        used = deleted.opened + self.folder.used(self.limits.files)
        return used > self.limits.files or deleted.mapped > 0 or bool(hiding)

    def last_reason(self, reason: Reason | None) -> Reason | None:
        """Return the reason, or what is found to be over a limit when all has ended."""
        if reason is not None:
            return reason
        if self.streams.over:
            return "output"
        if self.folder.used(self.limits.files) > self.limits.files:
            return "files"
        return None


@contextlib.contextmanager
def _eyes_of(chosen: user.User) -> Iterator[None]:
    """Look into /proc as the dropped user, if root may not trace others: in containers it may not.

    A user may look at his own processes, and at those in a user namespace of his.
    """
    if not chosen.dropped or kernel.has_capabilities(kernel.CAP_SYS_PTRACE):
        yield
        return
    os.setegid(chosen.uid)
    os.seteuid(chosen.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


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
    started, _, word = told.partition(launcher.STARTED)
    if started or not told:
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
