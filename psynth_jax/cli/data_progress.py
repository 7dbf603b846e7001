"""How far `psynth data prepare` is: a bar on a terminal, elsewhere a line now and then.

A command that is done within `FIRST` seconds says nothing but its result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from psynth_jax.data.counts import counted

if TYPE_CHECKING:  # it takes a while to import
    from psynth_jax.data.prepare import Tally

# Seconds between lines: often at first, while it is asked whether anything happens at all.
FIRST, LATER, LATER_AFTER = 3.0, 30.0, 60.0


class Stage:
    """What is being done: `says` a text, or `watch`es a tally."""

    def __init__(self, show: Callable[[str, int], None]):
        self.line = ""
        self._show = show

    def says(self, line: str, done: int = 0) -> None:
        """Take what is being done now, and how much of it is."""
        self.line = line
        self._show(line, done)

    def watch(self, tally: Tally) -> None:
        """Take what has been read and written so far."""
        written, dropped = sum(tally.tasks.values()), sum(tally.dropped.values())
        self.line = f"{counted(tally.rows, 'row')} read · {written:,} written · {dropped:,} dropped"
        self._show(self.line, written)


@contextmanager
def progress(console: Console, total: int | None) -> Iterator[Stage]:
    """Show how far it is, and yield what takes it.

    Args:
      console: where to.
      total: records that there will be; None is not known.
    """
    if not console.is_terminal:
        with _lines(console) as stage:
            yield stage
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(bar_width=20), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield Stage(lambda line, written: bar.update(task, description=line, completed=written))


@contextmanager
def _lines(console: Console) -> Iterator[Stage]:
    stage = Stage(lambda line, written: None)
    done = threading.Event()
    # A thread: one row, or the opening of a model, may take long.
    thread = threading.Thread(target=_tell, args=(console, stage, done), daemon=True)
    thread.start()
    try:
        yield stage
    finally:
        done.set()
        thread.join()


def _tell(console: Console, stage: Stage, done: threading.Event) -> None:
    start = time.monotonic()
    pause = FIRST
    while not done.wait(pause):
        console.print(Text(stage.line), soft_wrap=True)
        pause = FIRST if time.monotonic() - start < LATER_AFTER else LATER
