"""Rows of different lengths as one list of their real tokens: what stands alone at each token is computed without padding.

    rows   [R, S]    a0 a1 a2  .  .  .          list  [X, Z]    a0 a1 a2 b0 b1 b2 b3 b4 c0  .
                     b0 b1 b2 b3 b4  .
                     c0  .  .  .  .  .

Projections, norms and MLP go over the list; attention, and with it the cache, over rows.  X is the number of pieces that a
mesh cuts the rows into (1 without a mesh): each piece has the list of its own rows, so that nothing moves between devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from psynth_jax.axes import Array, PerRow
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

    def slot(self, pieces: int, size: int) -> Array:
        """Return the slot of every token of the list, `[X, Z]`; behind the last token any slot that exists."""
        return jax.vmap(lambda first: self._row_and_slot(first, size)[1])(self.first.reshape(pieces, -1))

    def _row_and_slot(self, first: Array, size: int) -> tuple[Array, Array]:
        place = jnp.arange(size)
        # Of rows that begin at the same place all but the last are empty.
        row = (place[:, None] >= first).sum(axis=1) - 1
        return row, jnp.minimum(place - first[row], self.slots - 1)

    def to_rows(self, listed: Array, mesh: Mesh | None, placement: Placement | None) -> Array:
        """Return `[R, S, heads, H]` of `listed [X, Z, heads, H]`; zeros behind a row's last token."""

        def unpack(first: Array, count: Array, listed: Array) -> Array:
            slot = jnp.arange(self.slots)
            place = jnp.where(slot < count[:, None], first[:, None] + slot, listed.shape[1])
            return listed[0].at[place].get(mode="fill", fill_value=0)

        return self._by_piece(unpack, listed, mesh, placement)

    def to_list(self, rows: Array, size: int, mesh: Mesh | None, placement: Placement | None) -> Array:
        """Return `[X, Z, heads, H]` of `rows [R, S, heads, H]`, Z = size; behind the last token it is any number."""

        def pack(first: Array, count: Array, rows: Array) -> Array:
            del count
            return rows[self._row_and_slot(first, size)][None]

        return self._by_piece(pack, rows, mesh, placement)

    def _by_piece(self, function: Callable[..., Array], x: Array, mesh: Mesh | None, placement: Placement | None) -> Array:
        if mesh is None or placement is None:
            return function(self.first, self.count, x)
        rows = P(placement.row_axes or None)
        heads = P(placement.row_axes or None, None, placement.head_axis)
        over = jax.shard_map(function, mesh=mesh, in_specs=(rows, rows, heads), out_specs=heads, check_vma=False)
        return over(self.first, self.count, x)
