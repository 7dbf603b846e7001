"""Keys and values out of a pool and into one, page by page: branches that are saved, loaded, or made by another pool.

    file or other pool   k [L, K, length, H]    -> pages, the last one padded ->   pool, a lease of whole pages

A page at a time, so that two small programs do for branches of every length.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from psynth_jax.axes import Array, HostArray
from psynth_jax.kv.pool import Lease, Pool
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.sharding import block_index, in_one_order, replicated


@dataclasses.dataclass(frozen=True, eq=False)
class StoredSlots:
    """Keys and values in host memory, such as a file's.

    arrays: k, v `[L, K, length, H]`; of int8 caches also k_scale, v_scale `[L, K, 1, length]` float32.  Every head once.
    """

    arrays: Mapping[str, HostArray]

    @property
    def slots(self) -> int:
        """How many slots it has."""
        return int(self.arrays["k"].shape[2])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, key/value heads, and width of a head."""
        layers, heads, _, width = self.arrays["k"].shape
        return int(layers), int(heads), int(width)

    @property
    def quantised(self) -> bool:
        """Whether numbers are int8 with scales."""
        return "k_scale" in self.arrays

    def part(self, first: int, length: int) -> StoredSlots:
        """Return `length` of these slots, from slot number `first` on."""
        return StoredSlots({name: _cut(name, values, first, length) for name, values in self.arrays.items()})

    def as_float32(self) -> StoredSlots:
        """Return int8 as the numbers that they stand for; others as they are."""
        if not self.quantised:
            return self
        plain = {}
        for name in ("k", "v"):
            scale = np.swapaxes(self.arrays[f"{name}_scale"], -1, -2)
            plain[name] = self.arrays[name].astype(np.float32) * scale
        return StoredSlots(plain)


def _cut(name: str, values: HostArray, first: int, length: int) -> HostArray:
    if name.endswith("_scale"):
        return values[:, :, :, first : first + length]
    return values[:, :, first : first + length]


def read_slots(lease: Lease) -> StoredSlots:
    """Return copies of all slots of a lease on the host, in the pool's number format.

    Raises `MemoryLimitError` where they are lost.
    """
    pool = lease.pool
    pages: dict[str, list[HostArray]] = {}
    with pool.lock:
        lease.check()
        page = pool.allocator.page
        for run in lease.runs:
            for first in range(run.first, run.first + run.length, page):
                count = min(page, run.first + run.length - first)
                # A page that would pass the end is moved back, and its first slots are left out.
                start = min(first, pool.allocator.slots - page)
                with in_one_order(pool.heads.placement is not None):
                    found = read_page(pool.heads, np.int32(run.block), np.int32(start), page)
                for name, values in _split(found).items():
                    pages.setdefault(name, []).append(_cut(name, values, first - start, count))
    return _joined(pages)


def write_slots(pool: Pool, stored: StoredSlots, block: int = 0) -> Lease:
    """Copy keys and values into free pages of a block; return a lease on them.

    They are converted to the pool's number format.  Raises `MemoryLimitError` as `Pool.reserve` does.
    """
    length = stored.slots
    with pool.lock:
        lease = pool.reserve(length, block)
        page, done = pool.allocator.page, 0
        for run in lease.runs:
            for first in range(run.first, run.first + run.length, page):
                if done < length:
                    values = _padded(stored.part(done, min(page, length - done)), page)
                    with in_one_order(pool.heads.placement is not None):
                        heads = write_page(pool.heads, values, np.int32(run.block), np.int32(first))
                    pool.replace(heads)
                    done += page
    return lease.part(0, length)


def compacted(leases: Sequence[Lease], block: int) -> Lease:
    """Copy the slots of several leases of one pool behind each other; return a lease on the copies.

    Raises as `read_slots` and `write_slots` do.
    """
    pages: dict[str, list[HostArray]] = {}
    for lease in leases:
        for name, values in read_slots(lease).arrays.items():
            pages.setdefault(name, []).append(values)
    return write_slots(leases[0].pool, _joined(pages), block)


def _joined(pages: Mapping[str, Sequence[HostArray]]) -> StoredSlots:
    """Return slots of several pages as one."""
    arrays = {}
    for name, values in pages.items():
        arrays[name] = np.concatenate(values, axis=3 if name.endswith("_scale") else 2)
    return StoredSlots(arrays)


def _split(page: CachedHeads) -> dict[str, HostArray]:
    """Return a page's arrays, every head once, keys and values apart: `[L, K, page, H]` and `[L, K, 1, page]`."""
    once = slice(None, None, page.copies)
    k = np.asarray(page.k)[:, 0, once]
    if page.v is None:
        found = {"k": k[..., : page.width], "v": k[..., page.width :]}
    else:
        found = {"k": k, "v": np.asarray(page.v)[:, 0, once]}
    if page.k_scale is not None and page.v_scale is not None:
        found["k_scale"] = np.asarray(page.k_scale)[:, 0, once]
        found["v_scale"] = np.asarray(page.v_scale)[:, 0, once]
    return found


def _padded(stored: StoredSlots, page: int) -> dict[str, HostArray]:
    """Return what is stored as a whole page, with zeros behind the last slot."""
    found = {}
    for name, values in stored.arrays.items():
        axis = 3 if name.endswith("_scale") else 2
        widths = [(0, 0)] * 4
        widths[axis] = (0, page - values.shape[axis])
        found[name] = np.pad(values, widths)
    return found


@functools.partial(jax.jit, static_argnames="page")
def read_page(heads: CachedHeads, block: Array, first: Array, page: int) -> CachedHeads:
    """Return a page of one block, `[L, 1, K, page, H]`, whole on every device."""

    def take(path: object, pool: Array) -> Array:
        axis = _slot_axis(path)
        start, sizes = [0, block, 0, 0, 0], [pool.shape[0], 1, *pool.shape[2:]]
        start[axis], sizes[axis] = first, page
        return jax.lax.dynamic_slice(pool, start, sizes)

    found = jax.tree_util.tree_map_with_path(take, heads)
    if heads.placement is None:
        return found
    mesh = jax.typeof(heads.k).sharding.mesh
    return jax.lax.with_sharding_constraint(found, replicated(mesh))


@functools.partial(jax.jit, donate_argnames="heads")
def write_page(heads: CachedHeads, stored: Mapping[str, Array], block: Array, first: Array) -> CachedHeads:
    """Write a page of arrays as in `StoredSlots` to slots `first ..` of one block; the heads are donated."""
    page = _in_format_of(heads, stored)
    return _put(heads, page, block, first)


def _in_format_of(heads: CachedHeads, stored: Mapping[str, Array]) -> CachedHeads:
    """Return what is stored as `[L, 1, K, page, H]` in the layout and number format of a pool."""
    copies = heads.copies
    arrays = {name: jnp.repeat(values, copies, axis=1)[:, None] for name, values in stored.items()}
    quantised = "k_scale" in arrays
    if quantised and heads.quantised:
        scaled = dataclasses.replace(heads, k_scale=arrays["k_scale"], v_scale=arrays["v_scale"])
        if heads.packed:
            both = jnp.concatenate([arrays["k"], arrays["v"]], axis=-1)
            return dataclasses.replace(scaled, k=both, v=None)
        return dataclasses.replace(scaled, k=arrays["k"], v=arrays["v"])
    k, v = (_plain(arrays[name], arrays.get(f"{name}_scale")) for name in ("k", "v"))
    return heads.stored(k, v)


def _plain(values: Array, scale: Array | None) -> Array:
    """Return numbers without scales."""
    if scale is None:
        return values
    return values.astype(jnp.float32) * jnp.swapaxes(scale, -1, -2)


def _put(heads: CachedHeads, page: CachedHeads, block: Array, first: Array) -> CachedHeads:
    placement = heads.placement

    def local(heads: CachedHeads, page: CachedHeads, block: Array, first: Array) -> CachedHeads:
        mine = jnp.bool_(True)
        if placement is not None:
            block = block - block_index(mesh, placement.row_axes) * heads.rows
            mine = (block >= 0) & (block < heads.rows)
            block = jnp.where(mine, block, 0)

        def put(path: object, pool: Array, new: Array) -> Array:
            start = [0, block, 0, 0, 0]
            start[_slot_axis(path)] = first
            old = jax.lax.dynamic_slice(pool, start, new.shape)
            return jax.lax.dynamic_update_slice(pool, jnp.where(mine, new, old), start)

        return jax.tree_util.tree_map_with_path(put, heads, page)

    if placement is None:
        return local(heads, page, block, first)
    mesh = jax.typeof(heads.k).sharding.mesh
    spec, whole = P(None, placement.row_axes or None, placement.head_axis), P(None, None, placement.head_axis)
    over = jax.shard_map(local, mesh=mesh, in_specs=(spec, whole, P(), P()), out_specs=spec, check_vma=False)
    return over(heads, page, block, first)


def _slot_axis(path: object) -> int:
    return 4 if path[-1].name.endswith("_scale") else 3  # type: ignore[index]
