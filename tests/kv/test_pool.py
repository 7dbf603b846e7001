"""The pool: where a write goes, what it leaves alone, what growing keeps, and when slots are free again."""

from __future__ import annotations

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.errors import MemoryLimitError
from psynth_jax.kv.pool import Places, Pool, write_tokens
from psynth_jax.ops.cached_heads import CachedHeads
from tests.trees import tree_bytes

L, K, H, PAGE = 2, 3, 4, 8


def pool(slots: int = 32, blocks: int = 2, dtype: str = "float32", most_slots: int | None = None) -> Pool:
    def allocate(slots: int) -> CachedHeads:
        return CachedHeads.allocate((L, blocks, K, slots, H), dtype, packed=False)

    return Pool(allocate, slots, PAGE, most_slots)


def random_heads(slots: int = 32, blocks: int = 2) -> CachedHeads:
    rng = np.random.default_rng(0)
    k, v = (jnp.asarray(rng.standard_normal((L, blocks, K, slots, H)), jnp.float32) for _ in range(2))
    return CachedHeads(k, v)


def new_tokens(rows: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    k, v = (rng.standard_normal((L, rows, tokens, K, H)).astype(np.float32) for _ in range(2))
    return k, v


class TestWrite:
    def test_every_row_to_its_own_slots_and_nothing_else(self) -> None:
        """Padding and idle rows have slots beyond the end, and write nothing, whatever they hold."""
        heads = random_heads()
        nowhere = heads.slots + np.arange(9, dtype=np.int32).reshape(3, 3)
        slots, block = nowhere.copy(), np.array([1, 0, 1], np.int32)
        slots[0], slots[1, :1] = [4, 5, 30], 31
        k, v = new_tokens(3, 3)
        k[:, 1, 1:], v[:, 2] = np.nan, np.nan
        expected = {"k": np.array(heads.k), "v": np.array(heads.v)}
        for row, token in ((0, 0), (0, 1), (0, 2), (1, 0)):
            expected["k"][:, block[row], :, slots[row, token]] = k[:, row, token]
            expected["v"][:, block[row], :, slots[row, token]] = v[:, row, token]
        written = jax.jit(write_tokens)(heads, k, v, Places(block, slots))
        np.testing.assert_array_equal(written.k, expected["k"])
        np.testing.assert_array_equal(written.v, expected["v"])

    @pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
    def test_in_the_format_of_the_pool(self, dtype: str) -> None:
        heads = CachedHeads.allocate((L, 1, K, 32, H), dtype, packed=False)
        k, v = new_tokens(1, 2)
        written = write_tokens(heads, k, v, Places(np.zeros(1, np.int32), np.array([[3, 9]], np.int32)))
        assert written.k.dtype == dtype
        stored, _ = heads.rounded(jnp.asarray(k), jnp.asarray(v))
        found = np.asarray(written.k, np.float32)
        if written.k_scale is not None:
            found = found * np.swapaxes(written.k_scale, -1, -2)
        np.testing.assert_array_equal(found[:, 0, :, 3], np.asarray(stored)[:, 0, 0])
        np.testing.assert_array_equal(found[:, 0, :, 9], np.asarray(stored)[:, 0, 1])

    def test_in_place_when_donated(self) -> None:
        heads = CachedHeads.allocate((L, 2, K, 512, H), "float32", packed=False)
        k, v = new_tokens(2, 1)
        places = Places(np.zeros(2, np.int32), np.array([[3], [9]], np.int32))
        write = jax.jit(write_tokens, donate_argnums=0)
        memory = write.lower(heads, k, v, places).compile().memory_analysis()
        assert memory.alias_size_in_bytes >= tree_bytes(heads)
        assert memory.temp_size_in_bytes < 0.1 * tree_bytes(heads)


class TestLeases:
    def test_are_free_when_dropped(self) -> None:
        here = pool()
        first = here.reserve(9)
        other = here.reserve(1, block=1)
        assert here.used_slots == 24
        del first
        assert here.used_slots == 8
        assert other.runs[0].block == 1

    def test_in_a_cycle_are_free_when_the_collector_finds_them(self) -> None:
        here = pool()
        cycle: list[Any] = [here.reserve(9)]
        cycle.append(cycle)
        del cycle
        gc.collect()
        assert here.used_slots == 0

    def test_a_part_outlives_the_whole(self) -> None:
        here = pool()
        whole = here.reserve(24)
        part = whole.part(10, 6)
        whole.release()
        assert here.used_slots == 8  # the page of slots 8 to 15
        assert (part.runs[0].first, part.slots) == (10, 6)

    def test_released_twice_are_freed_once(self) -> None:
        here = pool()
        lease, kept = here.reserve(8), here.reserve(8)
        lease.release()
        lease.release()
        del lease
        assert here.used_slots == kept.slots

    def test_of_a_lost_pool_free_nothing_and_have_no_parts(self) -> None:
        here = pool()
        lost = here.reserve(16)
        here.lose()
        fresh = here.reserve(16)
        assert lost.lost and not fresh.lost
        with pytest.raises(MemoryLimitError, match="encode their texts again"):
            lost.part(0, 8)
        del lost
        assert here.used_slots == 16


class TestGrowth:
    def test_keeps_what_is_there(self) -> None:
        here = pool(most_slots=128)
        lease = here.reserve(32)
        here.replace(random_heads())
        more = here.reserve(40)
        assert here.heads.slots == 128 and not set(lease.runs) & set(more.runs)
        np.testing.assert_array_equal(here.heads.k[..., :32, :], random_heads().k)

    def test_says_what_is_missing_where_it_may_not(self) -> None:
        here = pool()
        kept = here.reserve(20)
        with pytest.raises(MemoryLimitError, match=r"40 slots .* needed and 8 of 32 are free"):
            here.reserve(40)
        assert here.used_slots == 24 and kept.slots == 24
