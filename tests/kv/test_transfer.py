"""Keys and values out of a pool and into another."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from psynth_jax.cache import cache_spec, placement_on
from psynth_jax.kv.pool import Pool
from psynth_jax.kv.transfer import StoredSlots, read_slots, write_slots
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.sharding import ROW_AXES, in_one_order, make_mesh

L, K, H, PAGE = 3, 2, 8, 8


def pool(dtype: str = "float32", packed: bool = False, axes: str = "", slots: int = 64) -> Pool:
    mesh = make_mesh(axes) if axes else None
    placement = placement_on(mesh, K, ROW_AXES)
    blocks = mesh.shape["data"] * mesh.shape["branch"] if mesh is not None else 1

    def allocate(slots: int) -> CachedHeads:
        heads = K * (1 if placement is None else placement.copies)
        made = CachedHeads.allocate((L, blocks, heads, slots, H), dtype, packed=packed)
        made = dataclasses.replace(made, placement=placement)
        if mesh is None:
            return made
        return jax.device_put(made, NamedSharding(mesh, cache_spec(placement)))

    return Pool(allocate, slots, PAGE)


def stored(length: int, seed: int = 0) -> StoredSlots:
    rng = np.random.default_rng(seed)
    return StoredSlots({name: rng.standard_normal((L, K, length, H)).astype(np.float32) for name in ("k", "v")})


@pytest.mark.parametrize("length", [1, 7, 8, 9, 31])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_written_is_read(length: int, packed: bool) -> None:
    here = pool(packed=packed)
    other = write_slots(here, stored(5, seed=1))
    lease = write_slots(here, stored(length))
    found = read_slots(lease)
    for name, values in stored(length).arrays.items():
        np.testing.assert_array_equal(found.arrays[name], values)
    np.testing.assert_array_equal(read_slots(other).arrays["k"], stored(5, seed=1).arrays["k"])


def test_pieces_come_in_their_order() -> None:
    here = pool()
    parts = [here.reserve(PAGE) for _ in range(8)]
    for number in (0, 2, 3, 6):
        parts[number].release()
    lease = write_slots(here, stored(30))
    assert len(lease.runs) == 3
    np.testing.assert_array_equal(read_slots(lease).arrays["v"], stored(30).arrays["v"])
    np.testing.assert_array_equal(read_slots(lease.part(13, 12)).arrays["v"], stored(30).arrays["v"][:, :, 13:25])


def test_a_page_at_the_end_of_the_pool() -> None:
    here = pool(slots=16)
    lease = write_slots(here, stored(13))
    np.testing.assert_array_equal(read_slots(lease.part(11, 2)).arrays["k"], stored(13).arrays["k"][:, :, 11:])


@pytest.mark.parametrize("axes", ["branch=2,tensor=2,data=2", "branch=2,tensor=4"])
def test_every_block_of_a_mesh(axes: str) -> None:
    """With four parts of the heads' axis and two heads, every head is there twice; it is read once."""
    here = pool(axes=axes)
    leases = [write_slots(here, stored(11, seed=block), block) for block in range(here.allocator.blocks)]
    for block, lease in enumerate(leases):
        assert lease.runs[0].block == block
        np.testing.assert_array_equal(read_slots(lease).arrays["k"], stored(11, seed=block).arrays["k"])


def test_int8_stays_bitwise_in_a_pool_of_int8() -> None:
    first, second = pool("int8"), pool("int8", packed=True)
    lease = write_slots(first, stored(11))
    kept = read_slots(lease)
    assert kept.arrays["k"].dtype == np.int8 and kept.arrays["k_scale"].shape == (L, K, 1, 11)
    again = read_slots(write_slots(second, kept))
    for name, values in kept.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], values)


def test_formats_are_converted() -> None:
    for dtype, tolerance in (("bfloat16", 0.02), ("int8", 0.03)):
        there = write_slots(pool(dtype), stored(9))
        back = read_slots(write_slots(pool(), read_slots(there)))
        assert back.arrays["k"].dtype == np.float32
        np.testing.assert_allclose(back.arrays["k"], stored(9).arrays["k"], atol=tolerance)


@pytest.mark.parametrize("copied", [write_slots, lambda there, _: read_slots(there.reserve(PAGE))])
def test_pages_of_a_mesh_go_to_all_devices_in_one_order(copied: Callable[..., object]) -> None:
    """Two threads that give devices their programs in two orders would wait for each other for ever."""
    there, done = pool(axes="branch=4,tensor=2"), threading.Event()
    copied(there, stored(PAGE))  # so that a thread that did not wait would not be compiling while it is watched

    def copy() -> None:
        copied(there, stored(PAGE))
        done.set()

    thread = threading.Thread(target=copy, daemon=True)
    with in_one_order(True):
        thread.start()
        assert not done.wait(1), "it did not wait for the thread that was giving devices another program"
    assert done.wait(60)
