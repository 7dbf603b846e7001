"""A step that fails: everybody is answered or told why, and the engine goes on."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.engine import machine
from psynth_jax.errors import EngineError, MemoryLimitError, NotFiniteError
from tests.synthesis.requested import PROMPTS, QUESTION, alone, same
from tests.tiny import tiny_model


class TestFailure:
    """Whatever goes wrong in a step, all are answered or told why, and the next request is answered."""

    @pytest.fixture(autouse=True, params=[0, 1], ids=["at_once", "lag_one"])
    def lag(self, request: pytest.FixtureRequest, engine: ps.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether the device waits until the host knows its tokens."""
        monkeypatch.setattr(machine, "lag_here", lambda: request.param)
        monkeypatch.setattr(engine.synth.runner.scheduler, "lag", request.param)

    def broken(self, engine: ps.Engine, monkeypatch: pytest.MonkeyPatch, error: BaseException, *, lose: bool) -> None:
        """Let the second step from now fail."""
        programs = engine.synth.runner.programs
        run, steps = programs.run, [0]

        def failing(call: Any) -> Any:
            steps[0] += 1
            if steps[0] < 2:
                return run(call)
            monkeypatch.undo()
            if lose:
                for leaf in jax.tree.leaves(call.args[1]):
                    leaf.delete()
            raise error

        monkeypatch.setattr(programs, "run", failing)

    def test_a_step_that_raises(self, engine: ps.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = engine.synth.work(PROMPTS[:2], max_new_tokens=3)
        expected = alone(engine, ps.Request(PROMPTS[3], max_new_tokens=3))
        handles = [engine.submit(ps.Request(prompt, max_new_tokens=9)) for prompt in PROMPTS]
        self.broken(engine, monkeypatch, RuntimeError("the device is gone"), lose=True)
        for handle in handles:
            with pytest.raises((RuntimeError, MemoryLimitError), match="the device is gone"):
                handle.result()
        with pytest.raises(MemoryLimitError, match="encode their texts again"):
            engine.submit(ps.Request(QUESTION, kept, max_new_tokens=3))
        assert kept.token_ids  # what they say is there
        same(alone(engine, ps.Request(PROMPTS[3], max_new_tokens=3)), expected)
        assert engine.stats()["failed"] >= 4

    def test_out_of_memory(self, engine: ps.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        programs = engine.synth.runner.programs
        get = programs.get

        def failing(call: Any, *traced: Any) -> Any:
            executable = get(call, *traced)

            def exhausted(*_: Any) -> Any:
                raise error

            return exhausted if call.args[-1].shape[0] == 1 else executable

        engine.run([ps.Request(PROMPTS[1], max_new_tokens=2)])
        monkeypatch.setattr(programs, "get", failing)
        with pytest.raises(MemoryLimitError, match="use fewer or shorter branches"):
            engine.submit(ps.Request(PROMPTS[0], max_new_tokens=9)).result()
        monkeypatch.undo()
        assert len(alone(engine, ps.Request(PROMPTS[0], max_new_tokens=3)).token_ids) == 3

    def test_no_memory_for_a_new_pool(self, model: ps.Model, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = ps.Engine(model, pool_tokens=256)
        handles = [engine.submit(ps.Request(prompt, max_new_tokens=9)) for prompt in PROMPTS]

        def nothing(slots: int) -> Any:
            raise MemoryError("nothing is left")

        monkeypatch.setattr(engine.synth.runner.pool, "_allocate", nothing)
        programs = engine.synth.runner.programs

        def failing(call: Any) -> Any:
            for leaf in jax.tree.leaves(call.args[1]):
                leaf.delete()
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(programs, "run", failing)
        for handle in handles:
            with pytest.raises((MemoryError, MemoryLimitError, EngineError), match="nothing is left"):
                handle.result()
        with pytest.raises(EngineError, match="no memory for a new pool"):
            engine.submit(ps.Request(PROMPTS[0]))

    def test_numbers_that_are_not_finite(self, model: ps.Model) -> None:
        decoder = tiny_model(layers=2).decoder
        broken = jax.tree.map(lambda x: x.at[...].set(np.nan) if x.ndim == 2 else x, decoder)
        engine = ps.Engine(ps.Model(broken, None, frozenset(), "broken"), pool_tokens=256)
        handles = [engine.submit(ps.Request(prompt, max_new_tokens=3)) for prompt in PROMPTS[:2]]
        for handle in handles:
            with pytest.raises(NotFiniteError, match=f"logits of request {handle.id} are not finite"):
                handle.result()
        assert engine.stats()["prefix_tokens"] == 0, "what is not finite is shared with nobody"

    def test_an_interrupt_ends_only_who_was_interrupted(self, engine: ps.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = alone(engine, ps.Request(PROMPTS[1], max_new_tokens=6))
        handle = engine.submit(ps.Request(PROMPTS[1], max_new_tokens=6))
        engine.step()
        self.broken(engine, monkeypatch, KeyboardInterrupt(), lose=False)
        with pytest.raises(KeyboardInterrupt):
            engine.synth.synthesize(PROMPTS[0], max_new_tokens=30)
        same(handle.result(), expected)
