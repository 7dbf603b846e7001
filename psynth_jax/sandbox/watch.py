"""Watch a run: until it ends by itself, is over a limit, or nobody waits for it any more.

at once        output, the end of the program, the end of the client
every 10 ms    descendants, tasks, memory
every 50 ms    files and shared memory, too
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from psynth_jax.sandbox import kernel, memory, nameless, processes
from psynth_jax.sandbox.run_parts import Run, Started
from psynth_jax.sandbox.streams import Streams
from psynth_jax.sandbox.user import User

_LOOK = 0.010  # seconds between two looks at processes and memory
_LOOKS_AT_FILES = 5  # each so many looks the files are counted, too

Reason = Literal["time", "memory", "processes", "output", "files", "abandoned"]


class Watch:
    """Look at a run until it ends or is over a limit."""

    def __init__(
        self,
        run: Run,
        started: Started,
        streams: Streams,
        connection: socket.socket,
    ) -> None:
        self.limits = run.job.limits
        self.folder = run.folder
        self.user = run.user
        self.started = started
        self.streams = streams
        self.connection = connection.fileno()
        self.parent = os.getppid()
        self.looks = 0
        self.hidden: frozenset[Path] = frozenset()
        self.shared: Mapping[int, int] = {}
        self.installed = run.installed()

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
        used = memory.usage(found)
        if used.tasks - self.started.own_tasks > self.limits.processes:
            return "processes"
        most = used.memory + sum(self.shared.values())
        if most > self.limits.memory and self._memory_over(found, most):
            return "memory"
        if self.looks % _LOOKS_AT_FILES == 0 and self._files_over(found):
            return "files"
        return None

    def _reap_orphans(self) -> None:
        """Reap who has lost its parent and ended.  The leader stays: its id must stay its own."""
        for child in processes.children(os.getpid()):
            if child != self.started.leader:
                os.waitpid(child, os.WNOHANG)

    def _memory_over(self, found: list[int], most: int) -> bool:
        """Whether the memory is over the limit, with each shared page counted once."""
        with _eyes_of(self.user):
            shared_out = memory.shared_out_memory(found, sum(self.shared.values()))
        used = most if shared_out is None else shared_out
        return used > self.limits.memory

    def _files_over(self, found: list[int]) -> bool:
        with _eyes_of(self.user):
            held = nameless.look(found, self.user.uid, self.installed, self.shared)
        self.shared = held.shared
        # Python itself can be looked at.  Who cannot at two looks has executed something else, and
        # who maps a file that is deleted and closed hides its size: neither is an accident.
        hiding = held.hidden & self.hidden
        self.hidden = held.hidden
        used = held.opened + self.folder.used(self.limits.files)
        return used > self.limits.files or held.mapped > 0 or bool(hiding)

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
def _eyes_of(chosen: User) -> Iterator[None]:
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
