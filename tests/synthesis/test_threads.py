"""Threads that share one synthesizer: the same answers as alone, and times that are each call's own."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.branches import Branches
from tests.tiny import tiny_model, token_ids

SAMPLED = {"max_new_tokens": 6, "temperature": 1.5}


pytestmark = pytest.mark.usefixtures("programs_stay")


@pytest.fixture
def fresh() -> ps.ParallelSynthesis:
    """A synthesizer that has compiled nothing."""
    return ps.ParallelSynthesis(tiny_model(layers=1))


def test_another_threads_compilation_is_in_no_time_of_this_one(
    fresh: ps.ParallelSynthesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long compilation of another thread ends while this one answers."""
    prompt = token_ids(1, 5)
    fresh.synthesize(prompt, **SAMPLED)
    programs, compiling, finish = fresh.runner.programs, threading.Event(), threading.Event()
    lower, before = programs.lower, programs.compilations

    def slow(*args: Any) -> Any:
        compiling.set()
        assert finish.wait(60)
        return lower(*args)

    monkeypatch.setattr(programs, "lower", slow)
    other = threading.Thread(target=fresh.synthesize, args=([prompt] * 3,), kwargs=SAMPLED)
    other.start()
    assert compiling.wait(60)
    result = fresh.synthesize(prompt, **SAMPLED)  # the pool is nobody's while the other compiles
    assert other.is_alive() and programs.compilations == before
    time.sleep(0.5)
    finish.set()
    other.join(60)
    assert not other.is_alive() and programs.compilations > before
    assert 0 < result.ttft_s <= result.total_s and result.decode_tokens_per_s > 0
    assert programs.compile_seconds > 0.5


@pytest.mark.slow
def test_new_shapes_in_several_threads(fresh: ps.ParallelSynthesis) -> None:
    prompts = [token_ids(seed, length) for seed, length in enumerate((3, 12, 20, 3))]
    start = threading.Barrier(len(prompts))

    def ask(prompt: list[int]) -> tuple[Branches, ps.SynthesisResult, Any]:
        start.wait(60)
        branches = fresh.work([prompt, prompt], **SAMPLED)
        return branches, fresh.synthesize(prompt, branches, **SAMPLED), fresh.score(prompt, [1, 2, 3], branches)

    with ThreadPoolExecutor(len(prompts)) as pool:
        together = [*pool.map(ask, prompts)]
    programs = fresh.runner.programs
    assert programs.compilations == len(programs)
    alone = ps.ParallelSynthesis(fresh.model)
    for prompt, (branches, result, scores) in zip(prompts, together, strict=True):
        again = alone.work([prompt, prompt], **SAMPLED)
        assert again.token_ids == branches.token_ids
        assert alone.synthesize(prompt, again, **SAMPLED).token_ids == result.token_ids
        np.testing.assert_allclose(alone.score(prompt, [1, 2, 3], again), scores, atol=1e-5)
        assert result.ttft_s > 0 and result.decode_tokens_per_s > 0
    assert programs.compilations == len(programs), "every shape was compiled once, by one of the threads"


def test_a_clock_never_runs_backwards(fresh: ps.ParallelSynthesis) -> None:
    readings = [fresh.runner.now()]
    for length in (3, 20):
        fresh.synthesize(token_ids(1, length), on_token=lambda _: readings.append(fresh.runner.now()), **SAMPLED)
    assert readings == sorted(readings)
