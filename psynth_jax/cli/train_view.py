"""What `psynth train` shows while it works: a bar on a terminal, lines elsewhere.  Nothing takes long in silence."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.text import Text

from psynth_jax.training.config import TrainConfig

FIRST_REMINDER, LAST_REMINDER = 3.0, 60.0  # seconds of silence before the first, and at most between two
LONGEST_SILENCE = 10.0  # seconds after which a step is told that is not due
LASTS = " ..."  # how a word ends that says what is being done


class Watcher(Protocol):
    """Told how a run goes on."""

    def __call__(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Show the numbers of a step or an evaluation."""

    def say(self, text: str) -> None:
        """Show what is being done now."""

    def pause(self) -> None:
        """Let somebody else use the terminal, until the next word."""


def described(numbers: Mapping[str, Any]) -> str:
    """Say the numbers of a step or an evaluation in a line."""
    if "eval_loss" in numbers:
        return f"evaluation loss {numbers['eval_loss']:.4f}"
    tokens = sum(numbers[f"{kind}_tokens_per_s"] for kind in ("branch", "prompt", "target"))
    used = "" if numbers["mfu"] is None else f"  MFU {numbers['mfu']:.1%}"
    return f"loss {numbers['loss']:.4f}  {tokens:,.0f} tokens/s  {numbers['step_seconds']:.2f} s{used}"


@contextlib.contextmanager
def watching(settings: TrainConfig, console: Console) -> Iterator[Watcher]:
    """Show a run on a terminal, or in lines elsewhere, for the length of a block."""
    last = min(settings.train.steps, settings.train.stop_at or settings.train.steps)
    view = _Bar(console, last) if console.is_terminal else _Lines(console, last, settings.train.log_every)
    try:
        yield view
    finally:
        with terminal_may_be_gone():
            view.close()


@contextlib.contextmanager
def terminal_may_be_gone() -> Iterator[None]:
    """Write to a terminal that may have been closed: the run goes on to its save, and says nothing more."""
    try:
        yield
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # ValueError: stderr is no file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, sys.stderr.fileno())
            finally:
                os.close(nowhere)


class _Lines:
    """A line now and then, and a reminder of what is being done when it takes long."""

    def __init__(self, console: Console, last: int, every: int):
        self._console, self._last, self._every = console, last, every
        self._doing = ""
        self._since = self._printed = time.monotonic()
        self._next = FIRST_REMINDER
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._remind, name="reminders", daemon=True)
        self._thread.start()

    def __call__(self, step: int, numbers: Mapping[str, Any]) -> None:
        self._doing = ""
        due = step % self._every == 0 or step == self._last or time.monotonic() - self._printed > LONGEST_SILENCE
        if due or "eval_loss" in numbers:
            self._print(f"step {step}/{self._last}  {described(numbers)}")

    def say(self, text: str) -> None:
        lasts = text.endswith(LASTS)
        # What is refused soon is one line: other words wait until they take long.
        if not lasts or text.startswith("compiling "):
            self._print(text)
        self._doing = text if lasts else ""
        self._since, self._next = time.monotonic(), FIRST_REMINDER

    def pause(self) -> None:
        self._doing = ""

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _remind(self) -> None:
        while not self._closed.wait(0.5):
            seconds = time.monotonic() - self._since
            if self._doing and seconds > self._next:
                self._next = seconds + min(self._next, LAST_REMINDER)
                self._print(f"{self._doing} {seconds:.0f} s")

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        with terminal_may_be_gone():
            self._console.print(Text(text), soft_wrap=True)


class _Bar:
    """A spinner until the first step, then a bar with the newest numbers."""

    def __init__(self, console: Console, last: int):
        self._console, self._last = console, last
        self._status: Status | None = None
        self._progress: Progress | None = None
        self._lock = threading.RLock()  # signals are told by another thread

    def __call__(self, step: int, numbers: Mapping[str, Any]) -> None:
        with self._lock, terminal_may_be_gone():
            progress = self._bar()
            if "eval_loss" in numbers:
                progress.console.print(f"step {step}  {described(numbers)}")
            else:
                progress.update(progress.task_ids[0], completed=step, description=described(numbers))

    def say(self, text: str) -> None:
        with self._lock, terminal_may_be_gone():
            if not text.endswith(LASTS):  # it stays; what is being done is replaced by what is done next
                self._console.print(Text(text))
            elif self._progress is not None:
                self._progress.update(self._progress.task_ids[0], description=text)
            elif self._status is not None:
                self._status.update(Text(text))
            else:
                self._status = self._console.status(Text(text))
                self._status.start()

    def pause(self) -> None:
        with self._lock, terminal_may_be_gone():
            if self._status is not None:
                self._status.stop()
            self._status = None

    def close(self) -> None:
        with self._lock:
            self.pause()
            if self._progress is not None:
                self._progress.stop()

    def _bar(self) -> Progress:
        if self._progress is None:
            self.pause()
            columns = (
                SpinnerColumn(),
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console)
            self._progress.add_task("", total=self._last)
            self._progress.start()
        return self._progress


def ends_process(console: Console) -> Callable[[int], None]:
    """Return what ends the process at once, with an exit code, and leaves the terminal usable."""

    def end(code: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            console.show_cursor()
        os._exit(code)

    return end
