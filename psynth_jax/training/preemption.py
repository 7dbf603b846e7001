"""SIGTERM ends a run in order: it saves after the step that it is in.

One process has a signal handler.  With several, JAX's coordinator hears the signal on any of them and makes all stop after
the same step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Whether the run was told to end."""

    def __init__(self) -> None:
        self._signalled = threading.Event()

    def told(self, step: int) -> bool:
        """Return whether to end after this step: the same for all processes."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._signalled.is_set()

    def signal(self, *_: Any) -> None:
        """Note that the run has to end."""
        self._signalled.set()


@contextmanager
def preemption() -> Iterator[Preemption]:
    """Listen for SIGTERM for the length of a block; outside of the main thread nothing can listen."""
    heard = Preemption()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = signal.signal(signal.SIGTERM, heard.signal)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGTERM, before)
