"""The own cache: where a write goes, what it leaves alone, and what growing keeps."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.cache import SLOT_SIZES, KVCache, slot_bucket
from psynth_jax.ops.cached_heads import CachedHeads
from tests.trees import tree_bytes

L, R, K, S, H = 2, 3, 5, 11, 4


def filled_cache(seed: int = 0) -> KVCache:
    rng = np.random.default_rng(seed)
    k, v = (jnp.asarray(rng.standard_normal((L, R, K, S, H)), jnp.float32) for _ in range(2))
    return KVCache(CachedHeads(k, v), jnp.asarray([4, 0, 7], jnp.int32))


def new_tokens(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    k, v = (rng.standard_normal((L, R, count, K, H)).astype(np.float32) for _ in range(2))
    return k, v


def test_an_empty_cache_has_two_buffers_and_no_length() -> None:
    cache = KVCache.allocate(L, R, K, S, H, jnp.bfloat16)
    assert cache.heads.k.shape == cache.heads.v.shape == (L, R, K, S, H)
    assert cache.heads.k.dtype == cache.heads.v.dtype == jnp.bfloat16
    assert cache.heads.k.unsafe_buffer_pointer() != cache.heads.v.unsafe_buffer_pointer()
    assert (cache.rows, cache.slots, tree_bytes(cache.heads)) == (R, S, 2 * 2 * L * R * K * S * H)
    np.testing.assert_array_equal(cache.length, np.zeros(R, np.int32))


def test_append_writes_every_row_at_its_own_slot_and_nothing_else() -> None:
    cache, start, count = filled_cache(), np.array([4, 0, 7], np.int32), np.array([3, 1, 0], np.int32)
    k, v = new_tokens(3)
    expected_k, expected_v = np.array(cache.heads.k), np.array(cache.heads.v)
    for row in range(R):
        for token in range(3):
            expected_k[:, row, :, start[row] + token] = k[:, row, token]
            expected_v[:, row, :, start[row] + token] = v[:, row, token]
    written = jax.jit(KVCache.append)(cache, k, v, start, count)
    np.testing.assert_array_equal(written.heads.k, expected_k)
    np.testing.assert_array_equal(written.heads.v, expected_v)
    np.testing.assert_array_equal(written.length, start + count)


def test_padding_of_one_call_is_written_over_by_the_next() -> None:
    cache, start = KVCache.allocate(L, R, K, S, H, jnp.float32), np.zeros(R, np.int32)
    k, v = new_tokens(4)
    padded_k, padded_v = k.copy(), v.copy()
    padded_k[:, :, 2:], padded_v[:, :, 2:] = np.nan, np.nan
    two = np.full(R, 2, np.int32)
    in_two_calls = cache.append(padded_k, padded_v, start, two).append(k[:, :, 2:], v[:, :, 2:], two, two)
    at_once = cache.append(k, v, start, 2 * two)
    np.testing.assert_array_equal(in_two_calls.heads.k, at_once.heads.k)
    np.testing.assert_array_equal(in_two_calls.heads.v, at_once.heads.v)
    np.testing.assert_array_equal(in_two_calls.length, at_once.length)


def test_a_write_is_stored_in_the_caches_dtype() -> None:
    cache = KVCache.allocate(L, R, K, S, H, jnp.bfloat16)
    k, v = new_tokens(2)
    written = cache.append(k, v, np.zeros(R, np.int32), np.full(R, 2, np.int32))
    assert written.heads.k.dtype == jnp.bfloat16
    np.testing.assert_array_equal(written.heads.k[:, 1, :, 0], k[:, 1, 0].astype(jnp.bfloat16))


def test_a_donated_append_happens_in_place() -> None:
    cache = KVCache.allocate(L, R, K, 512, H, jnp.float32)
    k, v = new_tokens(1)
    append = jax.jit(KVCache.append, donate_argnums=0)
    compiled = append.lower(cache, k, v, np.zeros(R, np.int32), np.ones(R, np.int32)).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= tree_bytes(cache.heads)
    assert memory.temp_size_in_bytes < 0.1 * tree_bytes(cache.heads)


def test_growing_keeps_what_is_there() -> None:
    cache = filled_cache()
    grown = cache.grow(S + 6)
    assert grown.slots == S + 6
    np.testing.assert_array_equal(grown.heads.k[:, :, :, :S], cache.heads.k)
    np.testing.assert_array_equal(grown.heads.v[:, :, :, :S], cache.heads.v)
    np.testing.assert_array_equal(grown.length, cache.length)
    assert cache.grow(S) is cache
    assert cache.grow(S - 1) is cache


def test_slots_of_a_row_are_copied_out() -> None:
    cache = filled_cache()
    k, v = cache.slots_of(2, 3, 5)
    np.testing.assert_array_equal(k, np.array(cache.heads.k)[:, 2, :, 3:8])
    np.testing.assert_array_equal(v, np.array(cache.heads.v)[:, 2, :, 3:8])


def test_a_cache_is_a_frozen_pytree_of_three_arrays() -> None:
    cache = filled_cache()
    assert len(jax.tree.leaves(cache)) == 3
    assert isinstance(jax.tree.map(lambda _: "anything", cache), KVCache)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cache.heads = cache.heads  # type: ignore[misc]


@pytest.mark.parametrize(("slots", "bucket"), [(1, 64), (64, 64), (65, 128), (512, 512), (513, 1024), (1025, 1536)])
def test_capacities_are_rounded_up(slots: int, bucket: int) -> None:
    assert slot_bucket(slots) == bucket


def test_few_capacities_exist() -> None:
    buckets = {slot_bucket(slots) for slots in range(1, 4097)}
    assert buckets == {*SLOT_SIZES, *range(SLOT_SIZES[-1], 4097, SLOT_SIZES[-1])}
