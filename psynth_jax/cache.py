"""The key/value cache as an explicit pytree.  Besides `ops/`, the only file that indexes S.

    heads   L R K S H            slot s of a row holds the key and value of the row's s-th own token
    length  [R]                  slots that hold something; rows are right-padded, each has its own length

Keys are stored rotated at the absolute position they were computed at.  Updates return a new value; under `jax.jit` with the
old one donated they happen in place.  Knows nothing of branches, prompts or models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from psynth_jax.axes import Array, HostArray, PerRow
from psynth_jax.ops.cached_heads import CachedHeads, Placement, packs
from psynth_jax.sharding import TENSOR, kv_copies, put

SLOT_SIZES = (64, 128, 256, 512)
CACHE_DTYPES = ("float32", "bfloat16", "float16", "int8")


def slot_bucket(slots: int) -> int:
    """Round a capacity up to 64, 128, 256, 512 or a multiple of 512, so that few shapes are ever compiled."""
    return next((size for size in SLOT_SIZES if slots <= size), -(-slots // SLOT_SIZES[-1]) * SLOT_SIZES[-1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """heads: keys and values of all layers and rows.  length `[R]` int32."""

    heads: CachedHeads
    length: PerRow

    @classmethod
    def allocate(
        cls,
        layers: int,
        rows: int,
        kv_heads: int,
        slots: int,
        head_width: int,
        dtype: jax.typing.DTypeLike,
        placement: Placement | None = None,
        packed: bool | None = None,
    ) -> Self:
        """Return an empty cache.

        placement: how the caller cuts it over a mesh (`cache_shardings` of the jit that calls this).  packed: the layout;
        None: what suits the default device.
        """
        heads_cached = kv_heads * (1 if placement is None else placement.copies)
        shape = (layers, rows, heads_cached, slots, head_width)
        heads = CachedHeads.allocate(shape, dtype, packed=packed_here(head_width) if packed is None else packed)
        return cls(dataclasses.replace(heads, placement=placement), jnp.zeros((rows,), jnp.int32))

    @property
    def placement(self) -> Placement | None:
        """How the cache is cut over devices; None on a single one."""
        return self.heads.placement

    @property
    def rows(self) -> int:
        """R."""
        return self.heads.rows

    @property
    def slots(self) -> int:
        """S, the capacity of a row."""
        return self.heads.slots

    def append(self, k: Array, v: Array, start: PerRow, count: PerRow) -> Self:
        """Put the new keys and values `[L, R, T, K, H]` of one call at slots `start .. start + T - 1` of every row.

        Only the first `count [R]` of a row's T tokens are real: `length` becomes `start + count`, what the others left
        behind lies beyond it and is written over by the next call.  The caller guarantees `start + T <= S`: XLA would
        move a write that passes the end back over older slots.
        """

        def put(path: Any, heads: Array, new: Array) -> Array:
            slot_axis = _slot_axis(path)
            # One write per row, unrolled: a scatter over slots or a loop of writes makes XLA copy the donated cache.
            for row in range(self.rows):
                at: list[Any] = [0, row, 0, 0, 0]
                at[slot_axis] = start[row]
                heads = jax.lax.dynamic_update_slice(heads, new[:, row : row + 1], at)
            return heads

        new = self.heads.stored(jnp.swapaxes(k, 2, 3), jnp.swapaxes(v, 2, 3))
        return dataclasses.replace(self, heads=jax.tree_util.tree_map_with_path(put, self.heads, new), length=start + count)

    def grow(self, slots: int) -> Self:
        """Return a copy with capacity `slots`; this value itself when it is that large already."""
        if slots <= self.slots:
            return self

        def pad(path: Any, heads: Array) -> Array:
            widths = [(0, 0)] * heads.ndim
            widths[_slot_axis(path)] = (0, slots - self.slots)
            return jnp.pad(heads, widths)

        return dataclasses.replace(self, heads=jax.tree_util.tree_map_with_path(pad, self.heads))

    def slots_of(self, row: int, first: int, length: int) -> tuple[Array, Array]:
        """Return copies of k and v `[L, K, length, H]` of some slots of one row, to be saved; int8 comes as float32."""
        k, v = jax.vmap(lambda layer: self.heads.read(layer, row, 1, first, length))(jnp.arange(self.heads.layers))
        return k[:, 0, :: self.heads.copies], v[:, 0, :: self.heads.copies]

    def placed(self, mesh: Mesh | None, placement: Placement | None, rows: Sequence[int], count: int) -> KVCache:
        """Return a copy with `count` rows on a mesh (None: on one device), row i of this value as row `rows[i]`."""
        copies = 1 if placement is None else placement.copies

        def spread(heads: Array) -> HostArray:
            source = np.repeat(np.asarray(heads)[:, :, :: self.heads.copies], copies, axis=2)
            moved = np.zeros((source.shape[0], count, *source.shape[2:]), source.dtype)
            moved[:, list(rows)] = source[:, : len(rows)]
            return moved

        length = np.zeros(count, np.int32)
        length[list(rows)] = np.asarray(self.length)[: len(rows)]
        moved = KVCache(dataclasses.replace(jax.tree.map(spread, self.heads), placement=placement), length)
        if mesh is None:
            return jax.tree.map(jnp.asarray, moved)
        on_mesh = NamedSharding(mesh, cache_spec(placement))
        lengths = NamedSharding(mesh, length_spec(placement))
        return KVCache(jax.tree.map(lambda x: put(x, on_mesh), moved.heads), put(length, lengths))


def placement_on(mesh: Mesh | None, kv_heads: int, row_axes: tuple[str, ...]) -> Placement | None:
    """Return how a cache of `kv_heads` heads is cut over a mesh, its rows over `row_axes`; None without a mesh."""
    return None if mesh is None else Placement(row_axes, TENSOR, kv_copies(kv_heads, mesh))


def cache_spec(placement: Placement | None) -> P:
    """Return the partition spec of every array of `CachedHeads` (they all begin with L, R, K)."""
    return P() if placement is None else P(None, placement.row_axes or None, placement.head_axis)


def length_spec(placement: Placement | None) -> P:
    """Return the partition spec of `length`, and of all else that has one entry per row."""
    return P() if placement is None else P(placement.row_axes or None)


def cache_shardings(mesh: Mesh, placement: Placement | None) -> KVCache:
    """Return the shardings of a cache, as a prefix of its tree."""
    heads, length = NamedSharding(mesh, cache_spec(placement)), NamedSharding(mesh, length_spec(placement))
    return KVCache(heads, length)  # type: ignore[arg-type]


def in_device_layout(heads: CachedHeads) -> CachedHeads:
    """Return split heads in the layout that suits the default device."""
    return heads.as_packed() if packed_here(heads.width) else heads


def packed_here(head_width: int) -> bool:
    """Whether caches of this head width are packed on the default device."""
    return packs(head_width) and jax.default_backend() == "tpu"


def _slot_axis(path: Any) -> int:
    return 4 if path[-1].name.endswith("_scale") else 3
