"""A thread that drives an engine while streams of it are read."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Protocol

from psynth_jax.errors import InputError
from psynth_jax.synthesis.handles import Handle


class Driven(Protocol):
    """What a thread drives."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""

    def advance(self) -> None:
        """Do a part of it."""


class StreamDriver:
    """A thread that drives an engine as long as streams are read, all of them in one event loop."""

    def __init__(self, engine: Driven):
        """Begin without a thread.  The engine may go: it is held while streams are read alone."""
        self._engine = weakref.ref(engine)
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers: list[asyncio.Event] = []
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @contextlib.contextmanager
    def reading(self, loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> Iterator[None]:
        """Have one more reader.  news: is set when the thread has ended with an error.

        Raises `InputError` where readers of another loop are there.
        """
        with self._changed:
            if self._readers and self._loop is not loop:
                raise InputError("another event loop is reading streams of this engine: one engine has one event loop")
            self._loop = loop
            self._readers.append(news)
        try:
            yield
        finally:
            with self._changed:
                self._readers.remove(news)
                self._changed.notify_all()

    def wake(self) -> None:
        """Drive the engine until nothing is left to do."""
        with self._changed:
            if self._thread is None:
                self._error = None
                self._thread = threading.Thread(target=self._drive, name="psynth-engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what has ended the thread."""
        if self._error is not None:
            raise self._error

    def _drive(self) -> None:
        engine = self._engine()
        try:
            while engine is not None and self._has_work(engine):
                engine.advance()
        except BaseException as error:  # whatever it is, the readers raise it
            with self._changed:
                self._error, self._thread = error, None
                for news in self._readers:
                    assert self._loop is not None
                    tell(self._loop, news)
            raise

    def _has_work(self, engine: Driven) -> bool:
        """Wait until there is something to do; return False, and end the thread, where nobody reads any more."""
        with self._changed:
            while self._readers and not engine.busy:
                self._changed.wait()
            if not self._readers:
                self._thread = None
            return bool(self._readers)


def tell(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    """Tell a reader, from another thread, that there is something to read."""
    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody reads any more
        loop.call_soon_threadsafe(news.set)


def cancel_submitted(submitting: asyncio.Future[Handle]) -> None:
    """End a request whose reader has left before it was submitted."""
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
