"""A request on its way through an engine: what it has told, what it gave, and what it has written."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Protocol

from psynth_jax.branches import Branches
from psynth_jax.engine.sequences import TokenSequence
from psynth_jax.errors import MemoryLimitError
from psynth_jax.synthesis.outputs import Piece, RowOutput
from psynth_jax.synthesis.requests import EndReason, Event, Request, RequestResult
from psynth_jax.synthesis.workers import kept_branch
from psynth_jax.tokenizer import Tokenizer


class Drives(Protocol):
    """What a handle asks of its engine."""

    def advance(self) -> None:
        """Run a step, or wait until the thread that runs one has done so."""

    def cancel(self, request_id: int) -> None:
        """End a request."""

    def forget_events(self, request_id: int) -> None:
        """Tell nothing of a request that has ended."""


class Handle:
    """A request on its way.

    Attributes:
      id: number of the request, in the order in which an engine was given them.
      branch: what it has written, if it was to be kept: `Branches` of one.  It waits for the end,
        as `result` does.
    """

    def __init__(self, engine: Drives, number: int, request: Request, tell: Callable[[], None] | None):
        """Begin with nothing; use `Engine.submit`.  tell: that there are events, which are its reader's alone."""
        self.id = number
        self.request = request
        self.tell = tell
        self._engine = engine
        self._begin = time.perf_counter()
        self._ended = threading.Event()
        self._events: collections.deque[Event] = collections.deque()
        self._alternatives: list[tuple[tuple[int, float], ...]] = []
        self._result: RequestResult | None = None
        self._error: BaseException | None = None
        self._branch: Branches | None = None
        self._has_told_end = False

    def __repr__(self) -> str:
        """Show what it is, and whether it has ended."""
        return f"Handle({self.id}, {'done' if self.done else 'on its way'})"

    @property
    def done(self) -> bool:
        """Whether it has ended: answered, failed or cancelled."""
        return self._ended.is_set()

    def result(self) -> RequestResult:
        """Return what it gave; drive the engine, or wait for the thread that does, until it has ended.

        `Engine.step` tells nothing of it afterwards.
        Raises what made it fail: `MemoryLimitError`, `NotFiniteError`, `EngineError` or another.
        """
        while not self.done:
            self._engine.advance()
        self._engine.forget_events(self.id)
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    @property
    def branch(self) -> Branches | None:
        """What it has written, None if it was not to be kept or is nothing.  Raises as `result` does."""
        self.result()
        return self._branch

    def cancel(self) -> None:
        """End it, and let go of its slots: now, or as soon as the thread that drives has run its step."""
        self._engine.cancel(self.id)

    def take_events(self) -> list[Event]:
        """Return the events that nobody has taken yet."""
        found: list[Event] = []
        with contextlib.suppress(IndexError):  # another thread may take them at the same time
            while True:
                found.append(self._events.popleft())
        return found

    def hear(self, piece: Piece, at: float) -> None:
        """Note a token as an event.  at: seconds since it was submitted."""
        self._alternatives.append(piece.alternatives)
        self._events.append(Event("token", self.id, at, piece.text, piece.token_id, piece.logprob, piece.alternatives))
        if self.tell is not None:
            self.tell()

    def end(self, way: Way, tokenizer: Tokenizer | None, fingerprint: str) -> Branches | None:
        """Make the result and the branch of a sequence that the engine has forgotten, and free its slots.

        Returns the branch.  It may be called again where an interrupt came before it was done.
        """
        at = way.since_begin(time.perf_counter() - way.sequence.waited)
        if self._result is None and self._error is None:
            self._branch, self._error = self._kept(way, tokenizer, fingerprint)
            if self._error is None:
                self._result = self._made(way, at)
        way.sequence.release()  # not before: the branch holds what is kept of its slots by now
        way.output.close()
        if not self._has_told_end:
            self._events.append(Event("end", self.id, at, result=self._result, branch=self._branch, error=self._error))
            self._has_told_end = True
        return self._branch

    def _kept(self, way: Way, tokenizer: Tokenizer | None, fingerprint: str) -> tuple[Branches | None, BaseException | None]:
        """Return the branch that a sequence has written, if it was to be kept, and what went wrong."""
        sequence, output = way.sequence, way.output
        if sequence.error is not None or sequence.cancelled or not (self.request.keep and output.token_ids):
            return None, sequence.error
        reason = output.finish_reason or "length"
        try:
            return kept_branch(sequence, output.token_ids, reason, tokenizer, fingerprint), None
        except MemoryLimitError as error:  # another sequence's step has failed in between
            return None, error

    def say_that_it_ended(self) -> None:
        """Wake those that wait for the result."""
        self._ended.set()
        if self.tell is not None:
            self.tell()

    def _made(self, way: Way, at: float) -> RequestResult:
        sequence, output = way.sequence, way.output
        count = len(output.token_ids)
        reason: EndReason = "cancelled"
        if output.finish_reason is not None and not sequence.cancelled:
            reason = "stop" if output.finish_reason == "stop" else "length"
        return RequestResult(
            output.text,
            output.token_ids,
            tuple(output.logprobs[:count]),
            tuple(self._alternatives[:count]),
            reason,
            ttft_s=None if output.first_s is None else way.since_begin(output.first_s),
            queued_s=at if sequence.admitted_at is None else sequence.admitted_at - way.begin,
            total_s=at,
            prompt_tokens=sequence.prompt_length,
            cached_tokens=way.cached_tokens,
            cached_prefix_tokens=sequence.shared_tokens,
        )


@dataclasses.dataclass(frozen=True)
class Way:
    """A request inside the engine.  begin: when it was submitted.  cached_tokens: that it reads from branches."""

    handle: Handle
    sequence: TokenSequence
    output: RowOutput
    cached_tokens: int
    begin: float

    def since_begin(self, at: float) -> float:
        """Return the seconds from the begin to a reading of the sequence's clock."""
        return at + self.sequence.waited_before - self.begin
