"""Signals end a run in order: it saves after the step that it is in.

    SIGTERM, SIGHUP    save after this step
    first Ctrl-C       the same, said at once; a second one stops at once
    before the first step of this start there is nothing to save: every signal stops at once

A signal's handler in Python waits until the main thread comes back from the program that it runs or compiles.  So a thread
reads the signals too, from the descriptor that Python writes their numbers to as they come: it says what will be done, and
ends a process that does not come back.

With several processes, JAX's coordinator hears SIGTERM on any of them and makes all stop after the same step.  Ctrl-C and
SIGHUP are passed on to it as SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

import jax
from jax.experimental import multihost_utils

SAVING = "saving after this step, again to stop at once"
GRACE = 1.0  # seconds that the main thread has to stop at once before the process is ended

Told = Literal["terminated", "interrupted"]


class Preemption:
    """Whether the run was told to end.

    told_by: by what: "interrupted" is Ctrl-C, "terminated" another signal; None: it was not.
    """

    def __init__(self) -> None:
        self.told_by: Told | None = None
        self._begun = False
        self._several = jax.process_count() > 1

    def begin(self) -> None:
        """Note that there is something to save from now on."""
        self._begun = True

    @property
    def told_here(self) -> bool:
        """Whether this run of one process was told to end: what takes longer than a step may be left out."""
        return self.told_by is not None and not self._several

    def told(self, step: int) -> bool:
        """Return whether to end after this step: the same for all processes."""
        if self._several:
            ends = bool(multihost_utils.reached_preemption_sync_point(step))
            if ends and self.told_by is None:
                self.told_by = "terminated"
            return ends
        return self.told_by is not None

    def hear(self, number: int) -> bool:
        """Take a signal; return whether to stop at once."""
        if not self._begun or (number == signal.SIGINT and self.told_by is not None):
            return True
        if self.told_by is None:
            self.told_by = "interrupted" if number == signal.SIGINT else "terminated"
            if self._several:
                os.kill(os.getpid(), signal.SIGTERM)  # JAX's own handler hears it
        return False


class _Listener:
    """The signals of one block: heard in the main thread, and in a thread of its own while the main thread is busy."""

    def __init__(self, heard: Preemption, say: Callable[[str], None], end_process: Callable[[int], object] | None):
        self._heard, self._say, self._end_process = heard, say, end_process
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.RLock()  # a handler may interrupt a handler
        self._stops: int | None = None  # the signal that stops the run at once
        self._left = threading.Event()
        self._numbers = [signal.SIGINT, signal.SIGHUP]
        if jax.process_count() == 1:
            self._numbers.append(signal.SIGTERM)
        self._before = {number: signal.getsignal(number) for number in self._numbers}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)

    def __enter__(self) -> None:
        self._fd_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number, before in self._before.items():
            if before is not signal.SIG_IGN:  # nohup: whoever started the run wants it to outlive the terminal
                signal.signal(number, self._handle)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._fd_before)
        self._left.set()
        with contextlib.suppress(OSError):
            os.write(self._writing, b"\0")  # wakes the thread
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)

    def _take(self) -> bool:
        """Take the signals that have come; return whether the first Ctrl-C was among them."""
        with self._lock:
            try:
                numbers = os.read(self._reading, 4096)
            except BlockingIOError:
                return False
            before = self._heard.told_by
            for number in numbers:
                if number in self._numbers and self._stops is None and self._heard.hear(number):
                    self._stops = number
            return before is None and self._heard.told_by == "interrupted" and self._stops is None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Run in the main thread.  It says nothing: it may have interrupted whoever holds the terminal's lock."""
        if self._take():
            threading.Thread(target=self._tell, daemon=True).start()
        if self._stops is None:
            return
        if self._stops == signal.SIGINT:
            raise KeyboardInterrupt
        before = self._before[signal.Signals(self._stops)]
        if callable(before):  # of the command line: it ends the process in its own way
            before(number, frame)
        raise SystemExit(_exit_code(self._stops))

    def _listen(self) -> None:
        while not self._left.is_set():
            select.select([self._reading], [], [])
            if self._take():
                self._tell()
            if self._stops is not None:
                if not self._left.wait(GRACE) and self._end_process is not None:
                    self._end_process(_exit_code(self._stops))
                return

    def _tell(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self._say(SAVING)


def _exit_code(number: int) -> int:
    return 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def _nothing(_: str) -> None:
    pass


@contextmanager
def preemption(
    say: Callable[[str], None] = _nothing, end_process: Callable[[int], object] | None = None
) -> Iterator[Preemption]:
    """Listen for signals for the length of a block; outside of the main thread nothing can listen.

    Args:
      say: told what will be done, from another thread.
      end_process: called with an exit code when the main thread does not stop at once though it should, since it compiles.
    """
    heard = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    with _Listener(heard, say, end_process):
        yield heard
