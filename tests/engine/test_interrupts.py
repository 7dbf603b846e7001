"""Interrupts, and threads that drive for each other: whatever comes between, everybody is told once."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from psynth_jax.engine.scheduler import Scheduler
from psynth_jax.engine.sequences import Next, SequenceState, Token, TokenSequence
from psynth_jax.errors import EngineError
from tests.engine.machines import Worker, Written, greedy, prompt, scheduler, sequence, worker

LAGS = pytest.mark.parametrize("lag", [0, 1], ids=["at_once", "lag_one"])


def lagging(lag: int) -> Scheduler:
    engine = scheduler()
    engine.lag = lag
    return engine


def stopping(seed: int, length: int, limit: int) -> Worker:
    """A worker whose listener ends it before it has no room any more."""
    written = Written(limit)
    return Worker(prompt(seed, length), written, sequence(prompt(seed, length), written, limit + 9))


def finish(engine: Scheduler, sequence: TokenSequence) -> None:
    while sequence.state is not SequenceState.ENDED:
        engine.advance()


@LAGS
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("place", ["run", "launched", "collect", "heard"])
def test_an_interrupt_ends_only_who_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, place: str, number: int, lag: int
) -> None:
    """Others go on with the right tokens, whatever was launched, noted or heard by then."""
    engine = lagging(lag)
    other, interrupted = stopping(1, 4, 3), worker(prompt(2, 9), 9)
    calls = [0]

    def interrupting(function: Any) -> Any:
        def called(*args: Any) -> Any:
            found = function(*args)
            calls[0] += 1
            if calls[0] == number:
                raise KeyboardInterrupt
            return found

        return called

    engine.submit(other.sequence)
    with monkeypatch.context() as patch:
        if place == "run":
            patch.setattr(engine.batches, "launch", interrupting(engine.batches.launch))
        elif place == "launched":
            patch.setattr(TokenSequence, "launched", interrupting(TokenSequence.launched))
        elif place == "collect":
            patch.setattr(engine.batches, "collect", interrupting(engine.batches.collect))
        else:
            patch.setattr(TokenSequence, "take", interrupting(TokenSequence.take))
        with pytest.raises(KeyboardInterrupt):
            engine.run([interrupted.sequence])
    finish(engine, other.sequence)
    assert other.sequence.error is None
    assert other.written.tokens == greedy(engine.programs.model, other.prompt, 3)[0]


@LAGS
def test_an_interrupted_listener_hears_nothing_twice(lag: int) -> None:
    engine = lagging(lag)
    each, heard = worker(prompt(1, 4), 6), list[int]()

    def interrupted(token: Token) -> Next:
        heard.append(token.id)
        if len(heard) == 2:
            raise KeyboardInterrupt
        return Next.GO_ON

    each.sequence.listener = interrupted
    engine.submit(each.sequence)
    with pytest.raises(KeyboardInterrupt):
        finish(engine, each.sequence)
    engine.advance()
    assert heard == greedy(engine.programs.model, each.prompt, 2)[0]
    assert isinstance(each.sequence.error, EngineError)


def test_who_was_not_told_of_its_end_is_told_again() -> None:
    engine, told = scheduler(), list[TokenSequence]()
    each = worker(prompt(1, 4), 2)

    def on_end(sequence: TokenSequence) -> None:
        told.append(sequence)
        if len(told) == 1:
            raise KeyboardInterrupt

    each.sequence.on_end = on_end
    engine.submit(each.sequence)
    with pytest.raises(KeyboardInterrupt):
        finish(engine, each.sequence)
    engine.advance()
    assert told == [each.sequence] * 2
    engine.advance()
    assert len(told) == 2


def test_what_another_thread_drives_is_heard_to_its_end() -> None:
    """Another one takes all steps while this thread is hearing of the first token."""
    engine = scheduler()
    each, heard = worker(prompt(1, 4), 6), list[int]()

    def hear() -> None:
        heard.append(len(each.written.tokens))
        if heard[-1] == 1:
            thread = threading.Thread(target=finish, args=(engine, each.sequence))
            thread.start()
            thread.join(60)

    engine.run([each.sequence], hear)
    assert heard[-1] == 6


def test_a_pool_that_is_being_copied_to_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread that writes a page has given the buffer away, and holds the lock until it is back."""
    engine = scheduler()
    each = worker(prompt(1, 4), 6)
    engine.submit(each.sequence)
    engine.advance()
    heads, generation = engine.pool.heads, engine.pool.generation

    class Away:
        is_fully_addressable = True

        @staticmethod
        def is_deleted() -> bool:
            return True

    class Given:
        k = Away()

    with engine.pool.lock:
        engine.pool.heads = Given()  # type: ignore[assignment]
        thread = threading.Thread(target=engine.advance)
        thread.start()
        thread.join(0.2)
        engine.pool.heads = heads
    thread.join(60)
    finish(engine, each.sequence)
    assert engine.pool.generation == generation
    assert each.written.tokens == greedy(engine.programs.model, each.prompt, 6)[0]


@LAGS
def test_scores_that_are_told_again_in_another_piece_count_once(monkeypatch: pytest.MonkeyPatch, lag: int) -> None:
    """The first chunk is launched and not noted; the next is as long as those of another call were not."""
    engine = lagging(lag)
    text = prompt(3, 100)
    scored = sequence(text[:-1], Written(1), 0, targets=text[1:])
    launched = TokenSequence.launched

    def interrupted(each: TokenSequence, count: int) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    engine.submit(scored)
    monkeypatch.setattr(TokenSequence, "launched", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finish(engine, scored)
    assert TokenSequence.launched is launched and scored.written == 0
    finish(engine, scored)
    alone = sequence(text[:-1], Written(1), 0, targets=text[1:])
    engine.run([alone])
    np.testing.assert_allclose(np.concatenate(scored.scores), np.concatenate(alone.scores), atol=1e-5)
