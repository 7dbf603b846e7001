"""Prompts that begin alike are run once: exact to the token, and only where all that their keys depend on is the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import psynth_jax as ps
from tests.synthesis.requested import PROMPTS, QUESTION, alone, same
from tests.tiny import random_lora, random_mapper, token_ids


class TestSharing:
    """The same prompt is run once; with anything else that its keys depend on, it is run again."""

    prompt = token_ids(7, 40)

    def prefilled(self, engine: ps.Engine, **options: Any) -> int:
        (result,) = engine.run([ps.Request(self.prompt, max_new_tokens=2, **options)])
        return result.prefilled_tokens

    def test_all_but_the_last_token(self, engine: ps.Engine) -> None:
        first = alone(engine, ps.Request(self.prompt, max_new_tokens=4))
        (again,) = engine.run([ps.Request(self.prompt, max_new_tokens=4)])
        assert (first.prefilled_tokens, again.prefilled_tokens) == (40, 1)
        same(again, first)
        assert engine.stats()["prefix_tokens"] > 0

    def test_an_answer_is_known_to_what_follows_it(self, engine: ps.Engine) -> None:
        first = alone(engine, ps.Request(self.prompt, max_new_tokens=4))
        longer = [*self.prompt, *first.token_ids, 5, 6]
        (found,) = engine.run([ps.Request(longer, max_new_tokens=3)])
        assert found.cached_prefix_tokens == 43  # the last token of an answer has no keys and values
        same(found, alone(engine, ps.Request(longer, max_new_tokens=3)))

    def test_eight_forks_of_one_context(self, engine: ps.Engine) -> None:
        forks = [ps.Request([*self.prompt, number, number + 1], max_new_tokens=3) for number in range(8)]
        expected = [alone(engine, fork) for fork in forks]
        engine.synth.runner.forget_prompts()
        before = engine.stats()["prefill_tokens"]
        for found, right in zip(engine.run(forks), expected, strict=True):
            same(found, right)
        assert engine.stats()["prefill_tokens"] - before == 42 + 7 * 2

    def test_another_salt(self, engine: ps.Engine) -> None:
        alone(engine, ps.Request(self.prompt, max_new_tokens=2))
        assert self.prefilled(engine, salt="tenant") == 40
        assert self.prefilled(engine, salt="tenant") == 1
        assert self.prefilled(engine, salt="") == 40

    def test_another_scale(self, engine: ps.Engine) -> None:
        alone(engine, ps.Request(self.prompt, max_new_tokens=2))
        assert self.prefilled(engine, adapter=1.0) == 40
        assert self.prefilled(engine, adapter=0.5) == 40
        assert self.prefilled(engine, adapter=0.5) == 1

    def test_another_adapter(self, engine: ps.Engine, model: ps.Model) -> None:
        alone(engine, ps.Request(self.prompt, adapter=1.0, max_new_tokens=2))
        with ps.Engine(model, random_lora(model.config, 2)) as other:
            assert self.prefilled(other, adapter=1.0) == 40
            assert self.prefilled(other) == 40  # nobody has run it without an adapter
        assert self.prefilled(engine) == 1

    def test_another_mapper(self, engine: ps.Engine) -> None:
        branches = engine.synth.work(PROMPTS[:2], max_new_tokens=3)
        alone(engine, ps.Request(self.prompt, branches, max_new_tokens=2))
        assert self.prefilled(engine, branches=branches) == 1
        engine.synth.set_mapper(random_mapper(2))
        assert self.prefilled(engine, branches=branches) == 40

    def test_other_branches(self, engine: ps.Engine) -> None:
        branches = engine.synth.work(PROMPTS[:2], max_new_tokens=3)
        alone(engine, ps.Request(self.prompt, branches, max_new_tokens=2))
        assert self.prefilled(engine, branches=branches[[1, 0]]) == 40
        assert self.prefilled(engine, branches=branches[[0]]) == 40
        assert self.prefilled(engine, branches=branches) == 1

    def test_a_branch_that_says_the_same(self, model: ps.Model) -> None:
        """Written again, it is another one, though it lies where the first one did."""
        engine = ps.Engine(model, pool_tokens=512)
        branches = engine.synth.work(PROMPTS[:1], max_new_tokens=3)
        where = branches.questions[0][0].segments[0].held.runs
        engine.run([ps.Request(self.prompt, branches, max_new_tokens=2)])
        del branches
        pool = engine.synth.runner.pool
        assert pool.used_slots == 0
        pool.prefixes.evict(pool.allocator.free_slots(0) + pool.allocator.page, 0)  # the worker's, which is the oldest
        again = engine.synth.work(PROMPTS[:1], max_new_tokens=3)
        assert again.questions[0][0].segments[0].held.runs == where
        assert self.prefilled(engine, branches=again) == 40

    def test_another_sink(self, model: ps.Model) -> None:
        """All else that the keys depend on is the same: the scale is 0, so that no adapter is in them."""
        found = []
        for sink in ((3, 4), (3, 5), (3, 4)):
            with ps.Engine(model, ps.Adapter(None, None, None, sink)) as engine:
                if not found:
                    engine.synth.runner.forget_prompts()
                    branches = engine.synth.encode([PROMPTS[0]])
                found.append(self.prefilled(engine, branches=branches, adapter=0.0))
        assert found == [40, 40, 40], "each engine has encoded a sink of its own"

    def test_another_position(self, engine: ps.Engine) -> None:
        """The same branch at another span moves where the prompt begins."""
        (branch,) = engine.synth.work(PROMPTS[:1], max_new_tokens=3).questions[0]
        alone(engine, ps.Request(self.prompt, ps.Branches([[branch]], engine.synth.model.fingerprint, batched=False)))
        wider = dataclasses.replace(branch, span=branch.span + 4)
        other = ps.Branches([[wider]], engine.synth.model.fingerprint, batched=False)
        object.__setattr__(wider, "serial", branch.serial)
        assert self.prefilled(engine, branches=other) == 40

    def test_a_loaded_branch(self, engine: ps.Engine, tmp_path: Any) -> None:
        branches = engine.synth.work(PROMPTS[:2], max_new_tokens=3)
        expected = alone(engine, ps.Request(self.prompt, branches, max_new_tokens=4))
        branches.save(tmp_path / "branches")
        del branches
        loaded = ps.Branches.load(tmp_path / "branches")
        (found,) = engine.run([ps.Request(self.prompt, loaded, max_new_tokens=4)])
        assert found.prefilled_tokens == 40
        same(found, expected)

    def test_encoded_texts_are_run_once(self, engine: ps.Engine) -> None:
        engine.synth.runner.forget_prompts()
        first = engine.synth.encode([self.prompt])
        before = engine.stats()["prefill_tokens"]
        second = engine.synth.encode([self.prompt])
        assert engine.stats()["prefill_tokens"] == before
        scores = [engine.synth.score(QUESTION, [1, 2], branches) for branches in (first, second)]
        np.testing.assert_array_equal(scores[0], scores[1])

    def test_a_session_runs_what_is_new(self, engine: ps.Engine) -> None:
        chat = engine.synth.session()
        chat.reply(QUESTION, max_new_tokens=4)
        before, written = engine.stats()["prefill_tokens"], chat.tokens
        result = chat.reply([1, 2, 3], max_new_tokens=4)
        assert result.cached_prefix_tokens == written
        assert engine.stats()["prefill_tokens"] - before == 3
