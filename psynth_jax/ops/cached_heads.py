"""Cached keys and values as they lie in memory: two layouts and an 8-bit form behind one interface.

    split    k, v [L, R, K, S, H]
    packed   k    [L, R, K, S, 2H]       the H lanes of a key, then those of its value; v is None
    int8     k_scale, v_scale [L, R, K, 1, S] float32: a number is its int8 times the scale of its head and slot

Packed is for TPUs and H < 128: XLA lays `[..., S, 64]` out with S innermost, and a kernel that wants H innermost would be
given a padded copy of the whole cache.  Knows no rows' lengths and no branches.
"""

from __future__ import annotations

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array

_INT8_LARGEST = 127.0
LANES = 128  # of a TPU's vector register


def packs(width: int) -> bool:
    """Whether a TPU wants keys and values of this width packed: together they fill the lanes."""
    return width < LANES and LANES % (2 * width) == 0


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a cache is cut over devices, by names of mesh axes.

    row_axes: what R is cut over, outermost first, in blocks of rows; empty: every device holds all rows.  head_axis: what K
    is cut over.  copies: how often each key/value head is there, one behind the other, so that head_axis divides them.
    """

    row_axes: tuple[str, ...]
    head_axis: str
    copies: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CachedHeads:
    """Keys and values of all layers and rows.  Which layout they have shows from what is None.

    placement: None on a single device.  K counts copies.
    """

    k: Array
    v: Array | None
    k_scale: Array | None = None
    v_scale: Array | None = None
    placement: Placement | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def allocate(cls, shape: tuple[int, int, int, int, int], dtype: jax.typing.DTypeLike, *, packed: bool) -> Self:
        """Return zeros for `(L, R, K, S, H)`.  Every array is its own buffer: one used twice could not be donated."""
        *outer, slots, width = shape
        k = jnp.zeros((*outer, slots, 2 * width if packed else width), dtype)
        v = None if packed else jnp.zeros(shape, dtype)
        if jnp.dtype(dtype) != jnp.int8:
            return cls(k, v)
        scales = (*outer, 1, slots)
        return cls(k, v, jnp.zeros(scales, jnp.float32), jnp.zeros(scales, jnp.float32))

    @classmethod
    def holding(cls, k: Array, v: Array, *, packed: bool, placement: Placement | None) -> Self:
        """Return keys and values `[L, R, S, K, H]` as the slots of R rows, in their own dtype."""
        k, v = jnp.swapaxes(k, 2, 3), jnp.swapaxes(v, 2, 3)
        if packed:
            return cls(jnp.concatenate([k, v], axis=-1), None, placement=placement)
        return cls(k, v, placement=placement)

    @property
    def copies(self) -> int:
        """How often each key/value head is there."""
        return 1 if self.placement is None else self.placement.copies

    @property
    def packed(self) -> bool:
        """Whether a value lies behind its key."""
        return self.v is None

    @property
    def quantised(self) -> bool:
        """Whether numbers are int8 with scales."""
        return self.k_scale is not None

    @property
    def layers(self) -> int:
        """L."""
        return self.k.shape[0]

    @property
    def rows(self) -> int:
        """R."""
        return self.k.shape[1]

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.k.shape[2]

    @property
    def slots(self) -> int:
        """S."""
        return self.k.shape[3]

    @property
    def width(self) -> int:
        """H."""
        return self.k.shape[4] // 2 if self.packed else self.k.shape[4]

    def rounded(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Return keys and values `[..., H]` as they are once they are stored here: what is stored is what is attended to."""
        if self.quantised:
            return _rounded_to_int8(k), _rounded_to_int8(v)
        stored = self.k.dtype
        if jnp.promote_types(stored, k.dtype) == stored:  # of float16 and bfloat16 neither holds the other
            return k, v
        return k.astype(stored).astype(k.dtype), v.astype(stored).astype(v.dtype)

    def stored(self, k: Array, v: Array) -> Self:
        """Return keys and values `[L, R, K, T, H]` in this layout and number format, as T slots."""
        k_scale = v_scale = None
        if self.quantised:
            (k, k_scale), (v, v_scale) = _quantise(k), _quantise(v)
        k, v = k.astype(self.k.dtype), v.astype(self.k.dtype)
        if self.packed:
            return dataclasses.replace(self, k=jnp.concatenate([k, v], axis=-1), k_scale=k_scale, v_scale=v_scale)
        return dataclasses.replace(self, k=k, v=v, k_scale=k_scale, v_scale=v_scale)

    def read(
        self, layer: Array | int, first_row: Array | int, rows: int, first_slot: Array | int, size: int
    ) -> tuple[Array, Array]:
        """Return k and v `[rows, K, size, H]` of some slots of one layer; int8 comes back as float32.

        As `lax.dynamic_slice` does, a read that would pass the end is moved back.  No index may be negative.
        """

        def take(heads: Array, axis: int) -> Array:
            start = [layer, first_row, 0, 0, 0]
            sizes = [1, rows, *heads.shape[2:]]
            start[axis], sizes[axis] = first_slot, size
            return jax.lax.dynamic_slice(heads, start, sizes, allow_negative_indices=False)[0]

        k = take(self.k, 3)
        k, v = (k[..., : self.width], k[..., self.width :]) if self.v is None else (k, take(self.v, 3))
        if self.k_scale is None:
            return k, v
        scales = (take(scale, 4).swapaxes(-1, -2) for scale in (self.k_scale, self.v_scale))
        return tuple(heads.astype(jnp.float32) * scale for heads, scale in zip((k, v), scales, strict=True))  # type: ignore[return-value]


def _quantise(heads: Array) -> tuple[Array, Array]:
    """Return int8 `[..., T, H]` and scales `[..., 1, T]`: the largest number of each head and slot becomes 127."""
    wide = heads.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=-1, keepdims=True)
    # Not largest > 0, which NaN is not: its scale has to be NaN, for no int8 can be.
    scale = jnp.where(largest == 0, 1.0, largest) / _INT8_LARGEST
    return jnp.round(wide / scale).astype(jnp.int8), scale.swapaxes(-1, -2)


def _rounded_to_int8(heads: Array) -> Array:
    """Return the numbers that int8 and a scale stand for."""
    numbers, scale = _quantise(heads)
    return (numbers.astype(jnp.float32) * scale.swapaxes(-1, -2)).astype(heads.dtype)
