"""What is compiled, how often, and what a compiled step takes of memory besides its arguments."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.branch import Branch, Segment
from psynth_jax.branches import Branches, branch_view
from psynth_jax.cache import KVCache, slot_bucket
from psynth_jax.engine.programs import ProgramCall
from psynth_jax.errors import MemoryLimitError, UserError
from psynth_jax.mapper import Mapper
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.synthesis import engine as engine_module
from psynth_jax.synthesis import step
from psynth_jax.synthesis.engine import CHUNKS, Engine, chunk_sizes, list_size, slots_needed
from psynth_jax.synthesis.sampling import SamplingOptions, row_sampling
from psynth_jax.synthesis.step import Reader, Rows
from tests.tiny import random_lora, random_mapper, tiny_config, tiny_decoder, token_ids


class TestChunks:
    def test_cover_a_prompt_with_as_little_padding_as_the_sizes_allow(self) -> None:
        for tokens in range(1, 1300):
            *full, last = chunk_sizes(tokens)
            assert all(size == CHUNKS[-1] for size in full)
            rest = tokens - sum(full)
            assert last == min(size for size in CHUNKS if size >= rest) and rest > 0

    @pytest.mark.parametrize(("filled", "prompt", "new"), [(0, 1, 0), (0, 61, 2), (0, 61, 3), (70, 513, 9), (500, 3, 1)])
    def test_have_room_in_the_cache(self, filled: int, prompt: int, new: int) -> None:
        slots = slots_needed(filled, prompt, new)
        assert slots >= filled + sum(chunk_sizes(prompt)), "a padded chunk would be moved back over older slots"
        assert slots > filled + prompt + new
        assert slots == slot_bucket(slots)


@pytest.fixture(scope="module")
def branches(synth: ps.ParallelSynthesis) -> Branches:
    return synth.encode([token_ids(1, 5), token_ids(2, 19), token_ids(3, 8)])


class TestCompilations:
    """The expensive calls are the first ones of their shape."""

    def calls(self, synth: ps.ParallelSynthesis, branches: Branches, prompt: int, seed: int) -> None:
        """One call of every kind; prompts of 1 to 8 tokens are of one bucket."""
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
        programs = synth.engine.programs
        before = programs.compilations, programs.compile_seconds, len(programs)
        with count_compilations() as seen:
            self.calls(synth, branches, 4, 20)
        assert seen.names == []
        assert (programs.compilations, programs.compile_seconds, len(programs)) == before

    def test_decode_compiles_once(self, count_compilations: Any) -> None:
        """One program for the prompt, one for all tokens after it, one for the empty cache."""
        fresh_synth = ps.ParallelSynthesis(ps.Model(tiny_decoder(tiny_config(layers=1)), None, frozenset(), "tiny"))
        with count_compilations() as seen:
            fresh_synth.synthesize(token_ids(1, 5), max_new_tokens=20)
        assert sum("advance" in name for name in seen.names) == 2
        assert len(fresh_synth.engine.programs) == 3
        assert fresh_synth.engine.programs.compile_seconds > 0

    def test_sampling_options_are_no_shapes(self, synth: ps.ParallelSynthesis, count_compilations: Any) -> None:
        prompts = [token_ids(i, 5) for i in range(3)]
        synth.work(prompts, max_new_tokens=4, temperature=1.0)
        with count_compilations() as seen:
            synth.work(prompts, max_new_tokens=4, temperature=0.3, top_p=0.9, top_k=7, seed=[4, 5, 6], stop=[3])
        assert seen.names == []


# A cache as large per token as a real model's, behind a small decoder.
REALISTIC = tiny_config(layers=8, heads=9, kv_heads=3, head_width=64, width=48, mlp_width=32, vocab_size=61)
BRANCHES = 4


def struct(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def abstract_cache(rows: int, slots: int) -> KVCache:
    """A cache without its buffers: nothing is allocated or run here."""
    shape = (REALISTIC.layers, rows, REALISTIC.kv_heads, slots, REALISTIC.head_width)
    return KVCache(CachedHeads(*[struct(*shape, dtype=jnp.float32)] * 2), struct(rows))


def cache_bytes(cache: KVCache) -> int:
    return sum(math.prod(half.shape) * half.dtype.itemsize for half in jax.tree.leaves(cache.heads))


def step_memory(reader: Reader, cache: KVCache, tokens: int, *, fresh: bool) -> Any:
    """Compile the step as `Engine` runs it."""
    engine, rows = Engine(tiny_decoder(REALISTIC)), cache.rows
    fed = Rows(struct(rows, tokens), struct(rows), struct(rows), struct(rows))
    hidden = struct(rows, REALISTIC.width, dtype=jnp.float32)
    sampling = row_sampling(SamplingOptions(), [(0, row) for row in range(rows)])
    static = {"fresh": fresh, "greedy": True, "implementation": "auto"}
    call = ProgramCall(step.ADVANCE, (reader, fed, cache, hidden, sampling, np.int32(0)), static)
    return engine.programs.get(call).memory_analysis()


def synthesis_reader(cached: int) -> tuple[Reader, int]:
    """Return a synthesizer over four branches of `cached` tokens in a cache of that capacity, and the cache's bytes."""
    cache = abstract_cache(BRANCHES, cached)
    made = [Branch((), "", 5, cached, (Segment(cache, row, 0, cached),), "given") for row in range(BRANCHES)]
    lora, mapper = random_lora(REALISTIC, 1), Mapper.from_arrays(random_mapper(1))
    return Reader(mapper=mapper, lora=lora, view=branch_view([made])), cache_bytes(cache)


class TestMemory:
    @pytest.mark.slow
    @pytest.mark.parametrize(("tokens", "fresh"), [(64, True), (1, False)], ids=["prompt", "decode"])
    def test_the_synthesis_step_copies_no_branch(self, tokens: int, fresh: bool) -> None:
        own = abstract_cache(1, 128)
        temporaries = {}
        for cached in (2048, 4096):
            reader, held = synthesis_reader(cached)
            memory = step_memory(reader, own, tokens, fresh=fresh)
            assert memory.argument_size_in_bytes > held
            assert memory.temp_size_in_bytes < 0.1 * held
            temporaries[cached] = memory.temp_size_in_bytes
        assert temporaries[4096] <= temporaries[2048] + 64 * 1024, "temporaries grow with the cached tokens"

    def test_workers_decode_in_place(self) -> None:
        temporaries = {}
        for slots in (2048, 4096):
            cache = abstract_cache(BRANCHES, slots)
            memory = step_memory(Reader(), cache, 1, fresh=False)
            assert memory.alias_size_in_bytes >= cache_bytes(cache), "the donated cache is not written in place"
            assert memory.temp_size_in_bytes < 0.1 * cache_bytes(cache)
            temporaries[slots] = memory.temp_size_in_bytes
        assert temporaries[4096] <= temporaries[2048] + 64 * 1024, "temporaries grow with the cached tokens"

    def test_of_a_device_that_runs_out_says_what_to_lower(
        self, synth: ps.ParallelSynthesis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes")

        synth.score([1, 2], [3])
        monkeypatch.setattr(synth.engine.programs, "get", lambda call: full)
        with pytest.raises(MemoryLimitError, match="max_new_tokens") as caught:
            synth.score([1, 2], [3])
        assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(3, 40, 5, 9), (1, 600, 2, 30, 17)])
def test_rows_of_very_different_lengths_are_one_list(lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fed as a list of their real tokens they leave the same cache and the same last hidden states as in padded chunks."""
    rows = [token_ids(number, length) for number, length in enumerate(lengths)]
    found = []
    monkeypatch.setattr(engine_module, "LEAST_SAVED", 1)
    for longest in (engine_module.RAGGED, 0.0):
        monkeypatch.setattr(engine_module, "RAGGED", longest)
        machine, nothing = Engine(tiny_decoder(tiny_config())), np.zeros(len(rows), np.int32)
        cache = machine.allocate(len(rows), slots_needed(0, max(lengths), 0))
        cache, hidden, _ = machine.prefill(Reader(), rows, cache, nothing, nothing, None)
        slots = [cache.slots_of(row, 0, length) for row, length in enumerate(lengths)]
        found.append((len(machine.programs), np.asarray(hidden), slots))
    (listed, hidden, slots), (chunked, expected, as_chunks) = found
    assert listed == 2 and chunked >= 2  # the cache, and one program for all prompts
    np.testing.assert_allclose(hidden, expected, atol=1e-4)
    for one, other in zip(jax.tree.leaves(slots), jax.tree.leaves(as_chunks), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_list_has_few_sizes() -> None:
    sizes = {list_size(tokens) for tokens in range(1, 4097)}
    assert all(list_size(tokens) >= tokens for tokens in range(1, 4097)) and len(sizes) <= 4 * 9 + 8
    assert max(list_size(tokens) / tokens for tokens in range(64, 4097)) < 1.26
