"""What a command is doing, told while nothing else is shown: a spinner on a terminal, a line now and then elsewhere.

    with activity("loading smollm2-135m"):
        ...                                 whatever the library logs as progress replaces the text

The library says how far it is on the logger `psynth_jax.progress`, at level INFO.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, TimeElapsedColumn
from rich.text import Text

from psynth_jax.cli.streams import is_unicode

# Paths, role names and what models write may hold anything: no markup is read in them.
console = Console(stderr=True, markup=False, highlight=False)

FIRST_SECONDS, THEN_SECONDS = 5.0, 5.0  # of silence before a line, elsewhere than on a terminal
_LOGGER = logging.getLogger("psynth_jax.progress")


class Activity:
    """What is done at the moment.  `text` may be changed by any thread."""

    def __init__(self, text: str):
        self.text = text
        self._ended = threading.Event()
        self._stop_showing = contextlib.ExitStack()

    def done(self) -> None:
        """Stop showing it, now: something else is about to be shown."""
        self._ended.set()
        self._stop_showing.close()

    def show(self, *, seconds: tuple[float, float]) -> None:
        """Begin to show it."""
        if console.is_terminal and not console.is_dumb_terminal:
            progress = Progress(spinner(), _Described(self), TimeElapsedColumn(), console=console, transient=True)
            progress.add_task("", total=None)
            self._stop_showing.enter_context(progress)
            return
        thread = threading.Thread(target=self._tell, args=seconds, name="psynth-activity", daemon=True)
        thread.start()
        self._stop_showing.callback(thread.join)

    def _tell(self, first: float, then: float) -> None:
        begin = time.monotonic()
        wait = first
        while not self._ended.wait(wait):
            console.print(Text(f"{self.text} ... {time.monotonic() - begin:.0f} s"), soft_wrap=True)
            wait = then


class _Described(ProgressColumn):
    """The text of an activity, as it is when the screen is drawn."""

    def __init__(self, shown: Activity):
        super().__init__()
        self._shown = shown

    def render(self, task: object) -> Text:
        """Return the text."""
        return Text(self._shown.text)


class _Listener(logging.Handler):
    """Takes what the library logs as the text of an activity."""

    def __init__(self, told: Activity):
        super().__init__()
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        self._told.text = record.getMessage()


@contextlib.contextmanager
def activity(text: str) -> Iterator[Activity]:
    """Show for the length of a block what is done, unless `done` ends that earlier."""
    shown = Activity(text)
    listener, level = _Listener(shown), _LOGGER.level
    _LOGGER.addHandler(listener)
    _LOGGER.setLevel(logging.INFO)
    try:
        shown.show(seconds=(FIRST_SECONDS, THEN_SECONDS))
        yield shown
    finally:
        _LOGGER.setLevel(level)
        _LOGGER.removeHandler(listener)
        shown.done()


def spinner() -> SpinnerColumn:
    """Return a spinner that the terminal can draw."""
    return SpinnerColumn("dots" if is_unicode(console.file) else "line")
