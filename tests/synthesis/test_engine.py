"""What is compiled, how often, and what a compiled step takes of memory besides its arguments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.branches import Branches
from psynth_jax.buckets import Buckets
from psynth_jax.engine.batch_runner import STEP
from psynth_jax.engine.programs import ProgramCall, Programs
from psynth_jax.engine.step import Conditioning
from psynth_jax.engine.step_input import Layout
from psynth_jax.errors import MemoryLimitError, UserError
from psynth_jax.mapper import Mapper
from psynth_jax.ops.cached_heads import CachedHeads
from tests.tiny import random_lora, random_mapper, tiny_config, tiny_decoder, tiny_model, token_ids

pytestmark = pytest.mark.usefixtures("programs_stay")


@pytest.fixture(scope="module")
def branches(synth: ps.ParallelSynthesis) -> Branches:
    return synth.encode([token_ids(1, 5), token_ids(2, 19), token_ids(3, 8)])


def request(synth: ps.ParallelSynthesis, rng: np.random.Generator) -> None:
    """Workers write, texts are encoded, and a question is answered from both."""
    workers, texts = int(rng.integers(1, 7)), int(rng.integers(1, 3))

    def tokens(low: int, high: int) -> list[int]:
        return token_ids(int(rng.integers(1000)), int(rng.integers(low, high + 1)))

    live = synth.work([tokens(10, 60) for _ in range(workers)], max_new_tokens=int(rng.integers(20, 41)), temperature=1.0)
    given = synth.encode([tokens(20, 200) for _ in range(texts)])
    synth.synthesize(tokens(10, 60), Branches.join(live, given), max_new_tokens=4)


class TestCompilations:
    """The expensive calls are the first ones of their shape."""

    def calls(self, synth: ps.ParallelSynthesis, branches: Branches, prompt: int, seed: int) -> None:
        """One call of every kind."""
        synth.work([token_ids(seed + i, prompt) for i in range(3)], max_new_tokens=4)
        synth.encode([token_ids(seed + i, prompt) for i in range(3)])
        synth.synthesize(token_ids(seed, prompt), branches, max_new_tokens=4)
        synth.score(token_ids(seed, prompt - 1), [5], branches=branches)
        chat = synth.session(branches)
        chat.reply(token_ids(seed, prompt), max_new_tokens=4)
        chat.reply(token_ids(seed, prompt), max_new_tokens=4)

    def test_a_second_call_of_the_same_bucket_compiles_nothing(
        self, synth: ps.ParallelSynthesis, branches: Branches, count_compilations: Any
    ) -> None:
        self.calls(synth, branches, 7, 10)
        programs = synth.runner.programs
        before = programs.compilations, programs.compile_seconds, len(programs)
        with count_compilations() as seen:
            self.calls(synth, branches, 4, 20)
        assert seen.names == []
        assert (programs.compilations, programs.compile_seconds, len(programs)) == before

    def test_decode_compiles_once(self, count_compilations: Any) -> None:
        """One program for the prompt, one for all tokens after it."""
        fresh_synth = ps.ParallelSynthesis(tiny_model(layers=1))
        with count_compilations() as seen:
            fresh_synth.synthesize(token_ids(1, 5), max_new_tokens=20)
        assert sum("step" in name for name in seen.names) == 2
        assert len(fresh_synth.runner.programs) == 2
        assert fresh_synth.runner.programs.compile_seconds > 0

    def test_sampling_options_are_no_shapes(self, synth: ps.ParallelSynthesis, count_compilations: Any) -> None:
        prompts = [token_ids(i, 5) for i in range(3)]
        synth.work(prompts, max_new_tokens=4)
        with count_compilations() as seen:
            synth.work(prompts, max_new_tokens=4, temperature=0.3, top_p=0.9, top_k=7, seed=[4, 5, 6], stop=[3])
        assert seen.names == []

    @pytest.mark.slow
    @pytest.mark.parametrize("with_adapter", [False, True])
    def test_ten_requests_compile_ten_programs_at_most(self, count_compilations: Any, with_adapter: bool) -> None:
        """And ten more of other shapes none at all."""
        model, rng = tiny_model(layers=1), np.random.default_rng(7)
        synth = ps.ParallelSynthesis(model, random_lora(model.config, 1) if with_adapter else None)
        for _ in range(10):
            request(synth, rng)
        assert synth.runner.programs.compilations <= 10
        with count_compilations() as seen:
            for _ in range(10):
                request(synth, rng)
        assert seen.names == []


# Keys and values as large per token as a real model's, behind a small decoder.
REALISTIC = tiny_config(layers=8, heads=9, kv_heads=3, head_width=64, width=48, mlp_width=32, vocab_size=61)


def step_memory(slots: int, rows: int, tokens: int, separate: bool) -> tuple[Any, int]:
    """Compile the step as it runs, for a pool of `slots`; return what it takes, and the bytes of the pool."""
    decoder = tiny_decoder(REALISTIC)
    decoder = decoder.separated() if separate else decoder
    shape = (REALISTIC.layers, 1, REALISTIC.kv_heads, slots, REALISTIC.head_width)
    heads = jax.eval_shape(lambda: CachedHeads.allocate(shape, jnp.float32, packed=False))
    (branches, *_), layout = Buckets().branches, Layout(9, 25)
    assert branches == layout.branches
    conditioning = Conditioning(Mapper.from_arrays(random_mapper(1)), decoder.placed(random_lora(REALISTIC, 1)))
    array = jax.ShapeDtypeStruct((rows, layout.width + 2 * tokens), np.int32)
    static = {"layout": layout, "row_axes": (), "implementation": "auto"}
    before = jax.ShapeDtypeStruct((64,), np.int32)
    call = ProgramCall(STEP, (conditioning, heads, before, array), static)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(heads))
    return Programs(decoder).get(call).memory_analysis(), size


class TestMemory:
    @pytest.mark.slow
    @pytest.mark.parametrize(("rows", "tokens"), [(1, 64), (1, 1), (4, 1)], ids=["prompt", "decode", "workers"])
    @pytest.mark.parametrize("separate", [False, True], ids=["stacked", "separate"])
    def test_a_step_copies_no_layer_of_the_pool(self, rows: int, tokens: int, separate: bool) -> None:
        temporaries = {}
        for slots in (4096, 8192):
            memory, held = step_memory(slots, rows, tokens, separate)
            assert memory.alias_size_in_bytes >= held, "the donated pool is not written in place"
            assert memory.temp_size_in_bytes < 0.1 * held < held / REALISTIC.layers
            temporaries[slots] = memory.temp_size_in_bytes
        assert temporaries[8192] <= temporaries[4096] + 64 * 1024, "temporaries grow with the pool"

    def test_of_a_device_that_runs_out_says_what_to_lower(
        self, synth: ps.ParallelSynthesis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes")

        synth.score([1, 2], [3])
        monkeypatch.setattr(synth.runner.programs, "get", lambda call: full)
        with pytest.raises(MemoryLimitError, match="max_new_tokens") as caught:
            synth.score([1, 2], [3])
        assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
