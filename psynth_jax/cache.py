"""The key/value cache as an explicit pytree.  Besides `ops/`, the only file that indexes S.

    k, v    [L, R, K, S, H]      slot s of a row holds the key and value of the row's s-th own token
    length  [R]                  slots that hold something; rows are right-padded, each has its own length

Keys are stored rotated at the absolute position they were computed at.  Updates return a new value; under `jax.jit` with the
old one donated they happen in place.  Knows nothing of branches, prompts or models.
"""

from __future__ import annotations

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array, CachedHeads, PerRow

SLOT_SIZES = (64, 128, 256, 512)


def slot_bucket(slots: int) -> int:
    """Round a capacity up to 64, 128, 256, 512 or a multiple of 512, so that few shapes are ever compiled."""
    return next((size for size in SLOT_SIZES if slots <= size), -(-slots // SLOT_SIZES[-1]) * SLOT_SIZES[-1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """k, v `[L, R, K, S, H]`, length `[R]` int32."""

    k: CachedHeads
    v: CachedHeads
    length: PerRow

    @classmethod
    def allocate(
        cls, layers: int, rows: int, kv_heads: int, slots: int, head_width: int, dtype: jax.typing.DTypeLike
    ) -> Self:
        """Return an empty cache.  k and v are separate buffers: one array used twice could not be donated."""
        shape = (layers, rows, kv_heads, slots, head_width)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((rows,), jnp.int32))

    @property
    def rows(self) -> int:
        """R."""
        return self.k.shape[1]

    @property
    def slots(self) -> int:
        """S, the capacity of a row."""
        return self.k.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of k and v together."""
        return self.k.nbytes + self.v.nbytes

    def append(self, k: Array, v: Array, start: PerRow, count: PerRow) -> Self:
        """Put the new keys and values `[L, R, T, K, H]` of one call at slots `start .. start + T - 1` of every row.

        Only the first `count [R]` of a row's T tokens are real: `length` becomes `start + count`, what the others left
        behind lies beyond it and is written over by the next call.  The caller guarantees `start + T <= S`: XLA would
        move a write that passes the end back over older slots.
        """

        def put(heads: Array, new: Array) -> Array:
            new = jnp.swapaxes(new, 2, 3).astype(heads.dtype)  # [L, R, K, T, H]
            # One write per row, unrolled: a scatter over slots or a loop of writes makes XLA copy the donated cache.
            for row in range(self.rows):
                heads = jax.lax.dynamic_update_slice(heads, new[:, row : row + 1], (0, row, 0, start[row], 0))
            return heads

        return dataclasses.replace(self, k=put(self.k, k), v=put(self.v, v), length=start + count)

    def grow(self, slots: int) -> Self:
        """Return a copy with capacity `slots`; this value itself when it is that large already."""
        if slots <= self.slots:
            return self
        pad = ((0, 0), (0, 0), (0, 0), (0, slots - self.slots), (0, 0))
        return dataclasses.replace(self, k=jnp.pad(self.k, pad), v=jnp.pad(self.v, pad))

    def slots_of(self, row: int, first: int, length: int) -> tuple[Array, Array]:
        """Return copies of k and v `[L, K, length, H]` of some slots of one row, to be saved."""
        return self.k[:, row, :, first : first + length], self.v[:, row, :, first : first + length]
