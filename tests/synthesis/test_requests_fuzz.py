"""Five hundred events in any order: every request is answered as it is alone, or told why not, and no page is lost."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.errors import UserError
from psynth_jax.synthesis.engine import Handle
from psynth_jax.synthesis.requests import RequestResult
from tests.tiny import random_lora, random_mapper, tiny_model, token_ids

EVENTS = 500
POOL = 1536
WORKERS = [(token_ids(seed % 3, 20 + 9 * seed), 2 + seed) for seed in range(6)]  # some begin alike
QUESTIONS = [token_ids(50 + seed % 2, 10 + 7 * seed) for seed in range(3)]


class Alone:
    """What each request gives when nobody is beside it, computed once."""

    def __init__(self, model: ps.Model):
        self.engine = made(model, None)
        self.branches: dict[int, ps.Branches] = {}
        self.results: dict[Any, RequestResult] = {}

    def worker(self, number: int) -> RequestResult:
        if number not in self.branches:
            handle = self.ask(worker_request(number))
            self.results[number] = handle.result()
            branch = handle.branch
            assert branch is not None
            self.branches[number] = branch
        return self.results[number]

    def synthesis(self, question: int, workers: tuple[int, ...]) -> RequestResult:
        key = question, workers
        if key not in self.results:
            for number in workers:
                self.worker(number)
            read = ps.Branches.join(*(self.branches[number] for number in workers))
            self.results[key] = self.ask(ps.Request(QUESTIONS[question], read, max_new_tokens=4)).result()
        return self.results[key]

    def ask(self, request: ps.Request) -> Handle:
        self.engine.synth.runner.forget_prompts()
        handle = self.engine.submit(request)
        handle.result()
        return handle


def made(model: ps.Model, pool_tokens: int | None) -> ps.Engine:
    engine = ps.Engine(model, random_lora(model.config, 1), pool_tokens=pool_tokens, max_batch=6)
    engine.synth.set_mapper(random_mapper(1))
    return engine


def worker_request(number: int) -> ps.Request:
    prompt, tokens = WORKERS[number]
    return ps.Request(prompt, max_new_tokens=tokens, temperature=1.0, seed=number, keep=True)


def is_lost(branches: ps.Branches) -> bool:
    return any(branch.lost for branch in branches.questions[0])


@pytest.fixture(scope="module")
def alone() -> Alone:
    return Alone(tiny_model(layers=1))


class Run:
    """A run of drawn events on an engine with little room."""

    def __init__(self, alone: Alone, seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.alone, self.folder, self.monkeypatch = alone, folder, monkeypatch
        self.rng = np.random.default_rng(seed)
        self.engine = made(alone.engine.synth.model, POOL)
        self.engine.synth.runner.scheduler.lag = seed % 2
        self.open: list[tuple[Handle, Any]] = []
        self.kept: list[tuple[int, ps.Branches]] = []
        self.answered, self.cancelled = 0, 0
        self.refused: list[str] = []  # an exception would keep what its frames hold
        self.saved = 0

    def event(self) -> None:
        names = ["step", "worker", "synthesis", "cancel", "drop", "save", "evict", "fail"]
        weights = np.array([40, 5, 6, 1, 2, 1, 1, 0.2])
        getattr(self, self.rng.choice(names, p=weights / weights.sum()))()

    def step(self) -> None:
        self.engine.step()
        for handle, key in list(self.open):
            if handle.done:
                self.open.remove((handle, key))
                self.check(handle, key)

    def check(self, handle: Handle, key: Any) -> None:
        try:
            result = handle.result()
        except (UserError, RuntimeError) as error:
            self.refused.append(str(error))
            return
        if result.finish_reason == "cancelled":
            self.cancelled += 1
            return
        expected = self.alone.worker(key) if isinstance(key, int) else self.alone.synthesis(*key)
        assert result.token_ids == expected.token_ids
        np.testing.assert_allclose(result.logprobs, expected.logprobs, atol=1e-5)
        self.answered += 1
        branch = handle.branch
        if branch is not None:
            self.kept.append((key, branch))
        if len(self.kept) > 5:  # all of them together would leave no room
            self.drop()

    def worker(self) -> None:
        number = int(self.rng.integers(len(WORKERS)))
        self.open.append((self.engine.submit(worker_request(number)), number))

    def synthesis(self) -> None:
        if not self.kept:
            return
        count = int(self.rng.integers(1, min(3, len(self.kept)) + 1))
        chosen = [self.kept[index] for index in self.rng.choice(len(self.kept), count, replace=False)]
        question = int(self.rng.integers(len(QUESTIONS)))
        read = ps.Branches.join(*(branch for _, branch in chosen))
        key = question, tuple(number for number, _ in chosen)
        try:
            handle = self.engine.submit(ps.Request(QUESTIONS[question], read, max_new_tokens=4))
        except UserError as error:  # its branches are lost, or there is no room to copy those of a file
            self.refused.append(str(error))
            self.kept = [(number, branch) for number, branch in self.kept if not is_lost(branch)]
            return
        self.open.append((handle, key))

    def cancel(self) -> None:
        if self.open:
            self.open[int(self.rng.integers(len(self.open)))][0].cancel()

    def drop(self) -> None:
        if self.kept:
            self.kept.pop(int(self.rng.integers(len(self.kept))))

    def save(self) -> None:
        """Move a branch out of the pool and back."""
        if not self.kept:
            return
        number, branch = self.kept.pop(int(self.rng.integers(len(self.kept))))
        target = self.folder / str(self.saved)
        self.saved += 1
        try:
            branch.save(target)
        except UserError:  # it is lost
            return
        self.kept.append((number, ps.Branches.load(target)))

    def evict(self) -> None:
        self.engine.synth.runner.forget_prompts()

    def fail(self) -> None:
        """Let the next step fail, with the pool or without it."""
        programs, lose = self.engine.synth.runner.programs, bool(self.rng.integers(2))

        def failing(call: Any) -> Any:
            self.monkeypatch.undo()
            if lose:
                for leaf in jax.tree.leaves(call.args[1]):
                    leaf.delete()
            raise RuntimeError("the step failed")

        if self.engine.busy:
            self.monkeypatch.setattr(programs, "run", failing)

    def finish(self) -> None:
        self.monkeypatch.undo()
        while self.engine.busy:
            self.step()
        for handle, key in self.open:
            self.check(handle, key)
        self.open.clear()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_any_order(alone: Alone, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(alone, seed, tmp_path, monkeypatch)
    for _ in range(EVENTS):
        run.event()
    run.finish()
    assert run.answered > 20 and run.answered > len(run.refused)
    assert all(run.refused), "who is refused is told why"
    engine = run.engine
    run.kept.clear()
    gc.collect()
    stats = engine.stats()
    assert (stats["running"], stats["waiting"], stats["used_tokens"], stats["branch_tokens"]) == (0, 0, 0, 0)
    engine.synth.runner.forget_prompts()
    assert engine.synth.runner.pool.allocator.owned_slots() == 0
