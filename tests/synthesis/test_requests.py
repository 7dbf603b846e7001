"""Requests that come and go: the answers of each alone, whatever else runs, and nobody without an answer."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.engine import admission
from psynth_jax.errors import (
    ContextLengthError,
    EngineError,
    InputError,
    MemoryLimitError,
    ModelMismatchError,
)
from psynth_jax.kv import pool
from psynth_jax.synthesis.engine import Handle
from psynth_jax.synthesis.requests import Event, RequestResult
from tests.synthesis.requested import PROMPTS, QUESTION, alone, same
from tests.tiny import talking_model, tiny_model, token_ids


class TestAnswers:
    def test_a_worker_is_work(self, engine: ps.Engine) -> None:
        branches = engine.synth.work(PROMPTS, max_new_tokens=6, temperature=1.2, seed=3)
        requests = []
        for index, prompt in enumerate(PROMPTS):
            requests.append(ps.Request(prompt, index=index, seed=3, temperature=1.2, max_new_tokens=6, keep=True))
        handles = [engine.submit(request) for request in requests]
        for handle, tokens in zip(handles, branches.token_ids, strict=True):
            assert handle.result().token_ids == tokens
        kept = ps.Branches.join(*[branch for handle in handles if (branch := handle.branch) is not None])
        from_kept = engine.synth.score(QUESTION, [1, 2, 3], kept)
        np.testing.assert_allclose(from_kept, engine.synth.score(QUESTION, [1, 2, 3], branches), atol=1e-5)

    def test_a_synthesis_is_synthesize(self, engine: ps.Engine) -> None:
        branches = engine.synth.work(PROMPTS, max_new_tokens=6)
        expected = engine.synth.synthesize(QUESTION, branches, max_new_tokens=5)
        result = alone(engine, ps.Request(QUESTION, branches, max_new_tokens=5))
        assert result.token_ids == expected.token_ids and result.cached_tokens == expected.cached_tokens == 24
        np.testing.assert_allclose(result.logprobs, expected.logprobs, atol=1e-5)

    def test_the_scale_of_the_adapter(self, engine: ps.Engine, model: ps.Model) -> None:
        branches = engine.synth.work(PROMPTS, max_new_tokens=6)
        base = ps.ParallelSynthesis(model).synthesize(QUESTION, branches, max_new_tokens=4)
        found = alone(engine, ps.Request(QUESTION, branches, adapter=0.0, max_new_tokens=4))
        assert found.token_ids == base.token_ids
        np.testing.assert_allclose(found.logprobs, base.logprobs, atol=1e-5)
        adapted = alone(engine, ps.Request(QUESTION, branches, max_new_tokens=4))
        assert not np.allclose(adapted.logprobs, found.logprobs, atol=1e-3)

    def test_most_likely_tokens(self, engine: ps.Engine) -> None:
        result = alone(engine, ps.Request(PROMPTS[0], max_new_tokens=3, logprobs=4))
        assert len(result.top_logprobs) == 3
        for token, logprob, likely in zip(result.token_ids, result.logprobs, result.top_logprobs, strict=True):
            assert len(likely) == 4 and likely[0][0] == token
            assert likely[0][1] == pytest.approx(logprob, abs=1e-6)
            logprobs = [value for _, value in likely]
            assert logprobs == sorted(logprobs, reverse=True)
        assert alone(engine, ps.Request(PROMPTS[0], max_new_tokens=3)).top_logprobs == ((), (), ())

    def test_min_p_of_1_is_greedy(self, engine: ps.Engine) -> None:
        greedy = alone(engine, ps.Request(PROMPTS[0], max_new_tokens=8))
        drawn = alone(engine, ps.Request(PROMPTS[0], max_new_tokens=8, temperature=2.0, min_p=1.0, seed=1))
        assert drawn.token_ids == greedy.token_ids
        free = alone(engine, ps.Request(PROMPTS[0], max_new_tokens=8, temperature=2.0, seed=1))
        assert free.token_ids != greedy.token_ids

    def test_any_interleaving_is_each_alone(self, engine: ps.Engine) -> None:
        """Workers and syntheses, submitted between the steps of each other, in an order that is drawn."""
        branches = engine.synth.work(PROMPTS[:3], max_new_tokens=6)
        requests = []
        for number in range(12):
            sampled = {"temperature": 1.1, "top_p": 0.9, "seed": number} if number % 3 else {}
            read = branches[[number % 3, (number + 1) % 3]] if number % 2 else None
            length = 5 + 7 * (number % 5)
            requests.append(ps.Request(token_ids(number, length), read, max_new_tokens=2 + number % 6, **sampled))
        expected = [alone(engine, request) for request in requests]
        rng = np.random.default_rng(0)
        engine.synth.runner.forget_prompts()
        handles: list[Handle] = []
        while len(handles) < len(requests) or engine.busy:
            if len(handles) < len(requests) and rng.random() < 0.6:
                handles.append(engine.submit(requests[len(handles)]))
            else:
                engine.step()
        for handle, right in zip(handles, expected, strict=True):
            same(handle.result(), right)


class TestRoom:
    """Who has no room waits; who can never have any is told so."""

    def test_requests_wait_for_pages(self, model: ps.Model) -> None:
        engine = ps.Engine(model, pool_tokens=256)
        requests = [ps.Request(token_ids(seed, 90), max_new_tokens=20) for seed in range(6)]
        expected = [alone(engine, request) for request in requests]
        engine.synth.runner.forget_prompts()
        handles = [engine.submit(request) for request in requests]
        engine.step()
        assert engine.stats()["running"] == 2 and engine.stats()["waiting"] == 4
        for handle, right in zip(handles, expected, strict=True):
            same(handle.result(), right)
        stats = engine.stats()
        assert stats["pool_tokens"] == 256 and stats["used_tokens"] == 0 and stats["evictions"] > 0

    def test_what_never_fits(self, model: ps.Model) -> None:
        engine = ps.Engine(model, pool_tokens=128)
        with pytest.raises(MemoryLimitError, match=r"^160 slots .* are needed and 128 of 128 are free"):
            engine.run([ps.Request(token_ids(1, 150), max_new_tokens=10)])
        assert len(alone(engine, ps.Request(PROMPTS[0], max_new_tokens=3)).token_ids) == 3

    def test_what_branches_leave_no_room_for(self, model: ps.Model) -> None:
        engine = ps.Engine(model, pool_tokens=128)
        kept = engine.submit(ps.Request(token_ids(1, 60), max_new_tokens=20, keep=True)).branch
        assert kept is not None
        with pytest.raises(MemoryLimitError, match=r"branches that are kept hold slots"):
            engine.run([ps.Request(token_ids(2, 90), max_new_tokens=5)])
        del kept
        engine.run([ps.Request(token_ids(2, 90), max_new_tokens=5)])

    def test_a_kept_branch_does_not_keep_its_prompt(self, model: ps.Model) -> None:
        engine = ps.Engine(model, pool_tokens=512)
        kept = engine.submit(ps.Request(token_ids(1, 320), max_new_tokens=8, keep=True)).branch
        assert kept is not None
        stats = engine.stats()
        assert (stats["used_tokens"], stats["prefix_tokens"], stats["branch_tokens"]) == (64, 320, 8)
        long = ps.Request(token_ids(2, 370), max_new_tokens=8)
        assert len(engine.run([long])[0].token_ids) == 8
        assert engine.stats()["used_tokens"] == 64

    def test_what_is_too_much_for_the_pool_evicts_nothing(self, model: ps.Model) -> None:
        engine = ps.Engine(model, pool_tokens=256)
        engine.run([ps.Request(token_ids(1, 100), max_new_tokens=4)])
        with pytest.raises(MemoryLimitError):
            engine.run([ps.Request(token_ids(2, 300), max_new_tokens=4)])
        assert engine.stats()["evictions"] == 0

    def test_no_memory_to_grow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It ends whom it was for, and nobody else."""
        engine = ps.Engine(tiny_model(layers=1))
        first = engine.submit(ps.Request(PROMPTS[0], max_new_tokens=6))
        error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

        def exhausted(*_: Any) -> Any:
            raise error

        monkeypatch.setattr(pool, "_grown", exhausted)
        monkeypatch.setattr(engine.synth.runner.pool.allocator, "reserve", lambda *_: None)
        with pytest.raises(MemoryLimitError, match="no memory to make room"):
            first.result()
        monkeypatch.undo()
        assert len(engine.submit(ps.Request(PROMPTS[0], max_new_tokens=6)).result().token_ids) == 6

    def test_a_long_one_is_passed_a_bounded_number_of_times(self, model: ps.Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(admission, "MOST_PASSES", 3)
        engine = ps.Engine(model, pool_tokens=256)
        first = engine.submit(ps.Request(token_ids(1, 60), max_new_tokens=60))
        engine.step()
        long = engine.submit(ps.Request(token_ids(2, 180), max_new_tokens=5))
        short = [engine.submit(ps.Request(token_ids(10 + seed, 20), max_new_tokens=30)) for seed in range(8)]
        while not long.done:
            engine.step()
        assert first.done
        assert sum(handle.done for handle in short) <= 3
        for handle in short:
            handle.result()

    def test_a_request_that_was_not_submitted_yet_is_when_another_ends(self, engine: ps.Engine) -> None:
        """As after an interrupt between the two: nobody waits for ever, and it is run once."""
        scheduler = engine.synth.runner.scheduler
        submit, skipped = scheduler.submit, list[Any]()
        scheduler.submit = lambda sequence, call=None: skipped.append(sequence)  # type: ignore[method-assign]
        lost = engine.submit(ps.Request(PROMPTS[0], max_new_tokens=3))
        scheduler.submit = submit  # type: ignore[method-assign]
        cancelled = engine.submit(ps.Request(PROMPTS[2], max_new_tokens=3))
        engine.run([ps.Request(PROMPTS[1], max_new_tokens=2)])
        cancelled.cancel()
        assert len(lost.result().token_ids) == 3
        assert len(skipped) == 1

    def test_cancelled_before_it_was_submitted(self, model: ps.Model) -> None:
        engine = ps.Engine(model, max_batch=1)
        first, second = (engine.submit(ps.Request(prompt, max_new_tokens=4)) for prompt in PROMPTS[:2])
        second.cancel()
        second.cancel()
        assert second.result().finish_reason == "cancelled"
        assert len(first.result().token_ids) == 4
        assert not engine.busy

    def test_max_batch(self, model: ps.Model) -> None:
        engine = ps.Engine(model, max_batch=2)
        handles = [engine.submit(ps.Request(token_ids(seed, 9), max_new_tokens=4)) for seed in range(5)]
        engine.step()
        assert (engine.stats()["running"], engine.stats()["waiting"]) == (2, 3)
        handles[4].cancel()
        assert handles[4].result().finish_reason == "cancelled"
        for handle in handles[:4]:
            assert len(handle.result().token_ids) == 4


def test_slots_are_free_without_the_garbage_collector(engine: ps.Engine) -> None:
    """No cycle keeps what a request has held: a server that waits for a collection would have no room."""
    gc.collect()
    gc.disable()
    try:
        branches = engine.synth.work(PROMPTS[:2], max_new_tokens=4)
        handle = engine.submit(ps.Request(QUESTION, branches, max_new_tokens=4, keep=True))
        assert handle.branch is not None
        stream = asyncio.run(read_all(engine, ps.Request(QUESTION, branches, max_new_tokens=4)))
        with pytest.raises(MemoryLimitError):
            engine.synth.synthesize(QUESTION, branches, max_new_tokens=4, on_token=raising(MemoryLimitError))
        del branches, handle, stream
        assert engine.stats()["used_tokens"] == 0
    finally:
        gc.enable()


async def read_all(engine: ps.Engine, request: ps.Request) -> list[Event]:
    return [event async for event in engine.stream(request)]


def raising(kind: type[Exception]) -> Callable[[str], None]:
    def tell(piece: str) -> None:
        raise kind("no more")

    return tell


class TestEvents:
    def test_pieces_and_the_end(self) -> None:
        engine = ps.Engine(talking_model(layers=1))
        handle = engine.submit(ps.Request("Why?", max_new_tokens=6, keep=True, temperature=0.9))
        events: list[Event] = []
        while engine.busy:
            events += engine.step()
        events += engine.step()
        result = handle.result()
        assert [event.kind for event in events] == ["token"] * len(result.token_ids) + ["end"]
        assert "".join(event.text for event in events) == result.text
        assert [event.token_id for event in events[:-1]] == result.token_ids
        assert [event.logprob for event in events[:-1]] == list(result.logprobs)
        end = events[-1]
        assert end.result is result and end.finish_reason == "length" and end.error is None
        branch = handle.branch
        assert branch is not None and end.branch_id == branch.questions[0][0].serial
        times = [event.at_s for event in events]
        assert times == sorted(times)
        assert result.ttft_s is not None
        assert 0 <= result.queued_s <= result.ttft_s == times[0] <= result.total_s

    def test_cancel(self, engine: ps.Engine) -> None:
        others = [engine.submit(ps.Request(prompt, max_new_tokens=8)) for prompt in PROMPTS[:2]]
        handle = engine.submit(ps.Request(PROMPTS[2], max_new_tokens=200))
        while not any(event.request_id == handle.id for event in engine.step()):
            pass
        handle.cancel()
        result = handle.result()
        assert result.finish_reason == "cancelled" and 1 <= len(result.token_ids) < 200
        assert [len(other.result().token_ids) for other in others] == [8, 8]
        assert engine.stats()["cancelled"] >= 1 and not engine.busy


class TestStreams:
    def test_many_at_once(self, engine: ps.Engine) -> None:
        requests = [ps.Request(prompt, max_new_tokens=5, seed=3, temperature=1.0) for prompt in PROMPTS]
        expected = [alone(engine, request) for request in requests]

        async def all_of_them() -> list[list[Event]]:
            return await asyncio.gather(*(read_all(engine, request) for request in requests))

        for events, right in zip(asyncio.run(all_of_them()), expected, strict=True):
            assert [event.token_id for event in events[:-1]] == right.token_ids
            assert events[-1].result is not None
            same(events[-1].result, right)

    def test_a_reader_that_leaves(self, engine: ps.Engine) -> None:
        async def leave() -> None:
            stream = engine.stream(ps.Request(PROMPTS[0], max_new_tokens=400))
            async for _ in stream:
                break
            await stream.aclose()

        before = engine.stats()
        asyncio.run(leave())
        while engine.busy:
            engine.step()
        stats = engine.stats()
        assert stats["cancelled"] - before["cancelled"] == 1
        assert stats["decode_tokens"] - before["decode_tokens"] < 399

    def test_a_reader_that_leaves_before_it_has_a_handle(self, engine: ps.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """The thread that submits goes on: what it has submitted by then is cancelled."""
        submitting, may_go_on, submit = threading.Event(), threading.Event(), engine._submit

        def slow(*args: Any) -> Any:
            submitting.set()
            assert may_go_on.wait(60)
            return submit(*args)

        async def leave() -> None:
            stream = engine.stream(ps.Request(PROMPTS[0], max_new_tokens=400))
            reader = asyncio.ensure_future(anext(stream))
            await asyncio.to_thread(submitting.wait, 60)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            may_go_on.set()

        before = engine.stats()["cancelled"]
        monkeypatch.setattr(engine, "_submit", slow)
        asyncio.run(leave())  # it waits for its threads
        assert not engine.busy
        assert engine.stats()["cancelled"] - before == 1

    def test_two_event_loops(self, engine: ps.Engine) -> None:
        reading, finish = threading.Event(), threading.Event()

        async def slow() -> None:
            async for _ in engine.stream(ps.Request(PROMPTS[0], max_new_tokens=3)):
                reading.set()
                await asyncio.to_thread(finish.wait, 60)

        async def other() -> None:
            async for _ in engine.stream(ps.Request(PROMPTS[1], max_new_tokens=3)):
                pass

        thread = threading.Thread(target=asyncio.run, args=(slow(),))
        thread.start()
        assert reading.wait(60)
        with pytest.raises(InputError, match="another event loop"):
            asyncio.run(other())
        finish.set()
        thread.join(60)
        asyncio.run(other())

    def test_what_makes_it_fail_is_raised(self, engine: ps.Engine) -> None:
        async def read() -> None:
            async for _ in engine.stream(ps.Request([], max_new_tokens=3)):
                pass

        with pytest.raises(InputError, match="empty"):
            asyncio.run(read())


class TestThreads:
    def test_four_threads_are_one(self, engine: ps.Engine) -> None:
        jobs = [(token_ids(seed, 5 + seed % 30), seed) for seed in range(40)]

        def ask(job: tuple[list[int], int]) -> list[int]:
            prompt, seed = job
            return engine.synth.synthesize(prompt, max_new_tokens=4, temperature=1.0, seed=seed).token_ids

        expected = [*map(ask, jobs)]
        with ThreadPoolExecutor(4) as pool:
            assert [*pool.map(ask, jobs)] == expected

    def test_others_go_on_when_the_driver_is_done(self, engine: ps.Engine) -> None:
        """A thread whose request is short drives first; the long one of another thread ends, too."""
        long: list[RequestResult] = []
        handle = engine.submit(ps.Request(PROMPTS[0], max_new_tokens=40))
        thread = threading.Thread(target=lambda: long.append(handle.result()))
        short = engine.submit(ps.Request(PROMPTS[1], max_new_tokens=2))
        thread.start()
        assert len(short.result().token_ids) == 2
        thread.join(120)
        assert len(long[0].token_ids) == 40

    def test_a_callback_that_raises_ends_its_own_call(self, engine: ps.Engine) -> None:
        expected = alone(engine, ps.Request(PROMPTS[1], max_new_tokens=6))
        handle = engine.submit(ps.Request(PROMPTS[1], max_new_tokens=6))

        report = raising(ValueError)
        with pytest.raises(ValueError, match="no more"):
            engine.synth.synthesize(PROMPTS[0], max_new_tokens=30, on_token=report)
        same(handle.result(), expected)

    def test_a_callback_may_ask(self, engine: ps.Engine) -> None:
        inner: list[list[int]] = []

        def ask(piece: str) -> None:
            if not inner:
                inner.append(engine.synth.synthesize(PROMPTS[1], max_new_tokens=3).token_ids)

        outer = engine.synth.synthesize(PROMPTS[0], max_new_tokens=5, on_token=ask)
        assert outer.token_ids == engine.synth.synthesize(PROMPTS[0], max_new_tokens=5).token_ids
        assert inner == [engine.synth.synthesize(PROMPTS[1], max_new_tokens=3).token_ids]


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"index": -1}, "index is -1"),
            ({"logprobs": 21}, "logprobs is 21; it must be 0 to 20"),
            ({"adapter": -0.5}, "adapter is -0.5"),
            ({"salt": 3}, "salt is 3; it must be a text, or None"),
            ({"keep": 1}, "keep is 1; it must be True or False"),
            ({"min_p": 1.5}, "min_p is 1.5; it must be 0 \\(off\\) to 1"),
            ({"max_new_tokens": 0}, "max_new_tokens is 0"),
            ({"seed": "x"}, "seed must be a whole number"),
        ],
    )
    def test_options(self, options: dict[str, Any], told: str) -> None:
        with pytest.raises(InputError, match=f"^{told}"):
            ps.Request([1, 2], **options)

    def test_prompts_and_branches(self, engine: ps.Engine, model: ps.Model) -> None:
        with pytest.raises(InputError, match="empty"):
            engine.submit(ps.Request([]))
        with pytest.raises(ContextLengthError):
            engine.submit(ps.Request(PROMPTS[0], max_new_tokens=600))
        with pytest.raises(InputError, match=r"^a request is a ps\.Request"):
            engine.submit("Why?")  # type: ignore[arg-type]
        batch = engine.synth.work([PROMPTS[:1], PROMPTS[1:2]], max_new_tokens=2)
        with pytest.raises(InputError, match="one question"):
            engine.submit(ps.Request(QUESTION, batch))
        many = engine.synth.encode([[number] for number in range(9)])
        with pytest.raises(InputError, match="reads 9 branches; this engine was made for max_branches=8"):
            engine.submit(ps.Request(QUESTION, many))
        other = ps.ParallelSynthesis(tiny_model(seed=5, layers=2)).encode([PROMPTS[0]])
        with pytest.raises(ModelMismatchError):
            engine.submit(ps.Request(QUESTION, other))

    @pytest.mark.parametrize("name", ["pool_tokens", "max_batch", "max_branches"])
    def test_sizes(self, model: ps.Model, name: str) -> None:
        with pytest.raises(InputError, match=f"^{name} is 0"):
            ps.Engine(model, **{name: 0})

    def test_after_close(self, model: ps.Model) -> None:
        engine = ps.Engine(model)
        handle = engine.submit(ps.Request(PROMPTS[0], max_new_tokens=200))
        engine.step()
        engine.close()
        assert handle.result().finish_reason == "cancelled"
        with pytest.raises(EngineError, match="was closed"):
            engine.submit(ps.Request(PROMPTS[0]))


@pytest.mark.usefixtures("programs_stay")
def test_precompiled_requests_compile_nothing(count_compilations: Any) -> None:
    said: list[str] = []
    engine = ps.Engine(tiny_model(layers=1), max_batch=4, pool_tokens=2048)
    seconds = engine.precompile(said.append)
    programs = engine.stats()["programs"]
    assert seconds > 0 and programs == len(said) == 6  # 1 and 4 rows, four chunks of prompts
    with count_compilations() as seen:
        rng = np.random.default_rng(1)
        for _ in range(3):
            prompts = [token_ids(int(rng.integers(99)), int(rng.integers(10, 60))) for _ in range(4)]
            handles = [engine.submit(ps.Request(prompt, max_new_tokens=4, keep=True)) for prompt in prompts]
            branches = ps.Branches.join(*[kept for handle in handles if (kept := handle.branch) is not None])
            engine.run([ps.Request(QUESTION, branches, max_new_tokens=3)])
    assert [name for name in seen.names if "step" in name] == []
    assert engine.stats()["compilations"] == programs


@pytest.mark.usefixtures("programs_stay")
@pytest.mark.slow
def test_all_numbers_of_branches_are_precompiled() -> None:
    engine = ps.Engine(tiny_model(layers=1), max_batch=1, max_branches=12, pool_tokens=2048)
    engine.precompile(lambda text: None)
    programs = engine.stats()["programs"]
    texts = engine.synth.encode([[number] for number in range(12)])
    engine.run([ps.Request(QUESTION, texts, max_new_tokens=3)])
    engine.run([ps.Request(QUESTION, texts[[0]], max_new_tokens=3)])
    assert engine.stats()["programs"] == programs


@pytest.mark.slow
def test_requests_on_a_mesh(engine: ps.Engine, tmp_path: Path) -> None:
    """Requests go round the blocks; branches of a file are copied to those of the part that reads them."""
    branches = engine.synth.work(PROMPTS[:3], max_new_tokens=5)
    requests = [ps.Request(prompt, max_new_tokens=4) for prompt in PROMPTS]
    requests += [ps.Request(QUESTION, branches[[number, 2]], max_new_tokens=4) for number in (0, 1)]
    expected = engine.run(requests)
    branches.save(tmp_path / "branches")
    sharded = ps.Engine(engine.synth.model, engine.synth.adapter, mesh=ps.make_mesh("data=4,branch=2"))
    loaded = ps.Branches.load(tmp_path / "branches")
    for number, (request, right) in enumerate(zip(requests, expected, strict=True)):
        read = None if request.branches is None else loaded[[number - 4, 2]]
        for _ in range(2):  # on another block each time
            found = sharded.submit(ps.Request(request.prompt, read, max_new_tokens=4)).result()
            assert found.token_ids == right.token_ids
            np.testing.assert_allclose(found.logprobs, right.logprobs, atol=2e-5)
