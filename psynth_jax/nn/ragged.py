"""Rows of different lengths as one list of their real tokens: what stands alone at each token is computed without padding.

    rows   [R, S]    a0 a1 a2  .  .  .          list  [X, Z]    a0 a1 a2 b0 b1 b2 b3 b4 c0  .
                     b0 b1 b2 b3 b4  .
                     c0  .  .  .  .  .

Projections, norms and MLP go over the list; attention, and with it the cache, over rows.  X is the number of pieces that a
mesh cuts the rows into (1 without a mesh): each piece has the list of its own rows, so that nothing moves between devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from psynth_jax.axes import Array, HostArray, PerRow
from psynth_jax.ops.cached_heads import Placement


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RaggedRows:
    """Where the tokens of every row are.

    first `[R]`: place of a row's first token in the list of its piece, ascending within a piece, also for rows that have
    none.  count `[R]`: its tokens.  slots: S.
    """

    first: PerRow
    count: PerRow
    slots: int = dataclasses.field(metadata={"static": True})

    def position(self, offset: PerRow, pieces: int, size: int) -> Array:
        """Return the position of every token of the list, `[X, Z]`, where slot 0 of a row stands at `offset [R]`.

        Behind the last token it is any that exists.
        """

        def of_piece(first: Array, offset: Array) -> Array:
            row, slot = _row_and_slot(first, size, self.slots)
            return offset[row] + slot

        return jax.vmap(of_piece)(self.first.reshape(pieces, -1), offset.reshape(pieces, -1))

    def to_rows(self, listed: Array, mesh: Mesh | None, placement: Placement | None) -> Array:
        """Return `[R, S, heads, H]` of `listed [X, Z, heads, H]`; zeros behind a row's last token."""
        return self._by_piece(functools.partial(_to_rows, self.slots), listed, mesh, placement)

    def to_list(self, rows: Array, size: int, mesh: Mesh | None, placement: Placement | None) -> Array:
        """Return `[X, Z, heads, H]` of `rows [R, S, heads, H]`, Z = size; behind the last token it is any number."""
        return self._by_piece(functools.partial(_to_list, size), rows, mesh, placement)

    def last(self, listed: Array) -> Array:
        """Return what `listed [X, Z, D]` holds at the last token of every row, `[R, D]`; of rows without one, any number."""
        pieces, size, width = listed.shape
        at = jnp.clip(self.first + self.count - 1, 0, size - 1).reshape(pieces, -1, 1)
        return jnp.take_along_axis(listed, at, axis=1).reshape(-1, width)

    def _by_piece(self, function: Callable[..., Array], x: Array, mesh: Mesh | None, placement: Placement | None) -> Array:
        if mesh is None or placement is None:
            return function(self.first, self.count, x)
        rows = P(placement.row_axes or None)
        heads = P(placement.row_axes or None, None, placement.head_axis)
        over = jax.shard_map(function, mesh=mesh, in_specs=(rows, rows, heads), out_specs=heads, check_vma=False)
        return over(self.first, self.count, x)


def list_rows(
    rows: Sequence[Sequence[int]], slots: int, pieces: int, sizes: Callable[[int], int]
) -> tuple[HostArray, RaggedRows]:
    """Put the tokens of rows into lists: return `[X, Z]` int32 and where each row is in them.

    Args:
      rows: at most `slots` tokens each; as many rows for every piece.
      pieces: X.
      sizes: Z of the most tokens that a piece has.
    """
    counts = np.array([len(row) for row in rows], np.int32).reshape(pieces, -1)
    first = np.cumsum(counts, axis=1, dtype=np.int32) - counts
    listed = np.zeros((pieces, sizes(int(counts.sum(axis=1).max()))), np.int32)
    for row, begin, number in zip(rows, first.ravel(), np.repeat(np.arange(pieces), counts.shape[1]), strict=True):
        listed[number, begin : begin + len(row)] = row
    return listed, RaggedRows(first.ravel(), counts.ravel(), slots)


def _row_and_slot(first: Array, size: int, slots: int) -> tuple[Array, Array]:
    """Return row and slot of every place of a piece's list."""
    place = jnp.arange(size)
    # Of rows that begin at the same place all but the last are empty.
    row = (place[:, None] >= first).sum(axis=1) - 1
    return row, jnp.minimum(place - first[row], slots - 1)


# Each is the other's gradient, where a token is in both.  JAX would add up into zeros, one place after the other.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _to_rows(slots: int, first: Array, count: Array, listed: Array) -> Array:
    slot = jnp.arange(slots)
    place = jnp.where(slot < count[:, None], first[:, None] + slot, listed.shape[1])
    return listed[0].at[place].get(mode="fill", fill_value=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _to_list(size: int, first: Array, count: Array, rows: Array) -> Array:
    del count
    return rows[_row_and_slot(first, size, rows.shape[1])][None]


def _to_rows_forward(slots: int, first: Array, count: Array, listed: Array) -> tuple[Array, Any]:
    return _to_rows(slots, first, count, listed), (first, count, listed.shape[1])


def _to_rows_backward(slots: int, saved: Any, gradient: Array) -> tuple[None, None, Array]:
    first, count, size = saved
    row, slot = _row_and_slot(first, size, slots)
    filled = (jnp.arange(size) < first[row] + count[row])[:, None, None]
    return None, None, jnp.where(filled, gradient[row, slot], 0)[None]


def _to_list_forward(size: int, first: Array, count: Array, rows: Array) -> tuple[Array, Any]:
    return _to_list(size, first, count, rows), (first, count, rows.shape[1])


def _to_list_backward(size: int, saved: Any, gradient: Array) -> tuple[None, None, Array]:
    first, count, slots = saved
    return None, None, _to_rows(slots, first, count, gradient)


_to_rows.defvjp(_to_rows_forward, _to_rows_backward)
_to_list.defvjp(_to_list_forward, _to_list_backward)
