"""A step that is launched before the tokens of the last one are known."""

from __future__ import annotations

from typing import Any

import jax
import pytest

from psynth_jax.engine.programs import ProgramCall
from psynth_jax.engine.scheduler import Scheduler
from psynth_jax.engine.sequences import Next, Token
from tests.engine.machines import greedy, prompt, scheduler, sequence, worker


def lagging(lag: int) -> Scheduler:
    engine = scheduler()
    engine.lag = lag
    return engine


def noted(engine: Scheduler, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that is filled with what is launched and collected from now on."""
    events: list[str] = []
    run, get = engine.programs.run, jax.device_get

    def launched(call: ProgramCall) -> Any:
        events.append("launch")
        return run(call)

    def collected(result: Any) -> Any:
        events.append("collect")
        return get(result)

    monkeypatch.setattr(engine.programs, "run", launched)
    monkeypatch.setattr(jax, "device_get", collected)
    return events


def test_the_device_never_waits_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = lagging(1)
    events = noted(engine, monkeypatch)
    engine.run([worker(prompt(1, 4), 3).sequence])
    assert events == ["launch", "launch", "collect", "launch", "collect", "launch", "collect", "collect"]


@pytest.mark.parametrize("append_last", [False, True], ids=["answer", "worker"])
def test_no_step_is_run_in_vain_where_the_limit_ends_a_text(monkeypatch: pytest.MonkeyPatch, append_last: bool) -> None:
    counts = []
    for lag in (0, 1):
        engine = lagging(lag)
        with monkeypatch.context() as patch:
            events = noted(engine, patch)
            each = worker(prompt(1, 4), 5)
            if not append_last:
                each.sequence.draws, each.written._append_last = 5, False
            engine.run([each.sequence])
        assert len(each.written.tokens) == 5
        counts.append(events.count("launch"))
    assert counts == [5 + append_last] * 2


@pytest.mark.parametrize("lag", [0, 1])
def test_what_is_run_behind_the_end_is_part_of_nothing(lag: int) -> None:
    """Neither of the sequence, nor of what others share with it."""
    engine = lagging(lag)
    text = prompt(1, 20)
    tokens, _ = greedy(engine.programs.model, text, 3)
    heard: list[int] = []

    def stops(token: Token) -> Next:
        heard.append(token.id)
        return Next.END if len(heard) == 3 else Next.GO_ON

    ended = sequence(text, stops, 9, salt="")
    engine.run([ended])
    assert heard == tokens
    assert ended.tokens == [*text, *tokens[:2]]
    assert ended.written == len(ended.tokens)
    assert ended.context is not None
    with engine.pool.lock:
        found = engine.pool.prefixes.match(ended.context, [*text, *tokens, 1, 2, 3], 26)
    assert found.length == len(text) + 2
    del ended
    assert engine.pool.used_slots == 0, "what is launched in vain holds nothing"
