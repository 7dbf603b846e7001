"""What attention reads besides the new tokens: runs of slots of any cache, a row's own among them.

    cache row r     [ .  .  s  s  s  s  . ]        run (row r, first 2, length 4, branch w)

Every implementation imports these; the dispatcher in api.py imports the implementations.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array, PerRow
from psynth_jax.ops.cached_heads import CachedHeads

Implementation: TypeAlias = Literal["auto", "xla", "pallas_tpu", "pallas_gpu", "reference"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Runs:
    """Neighbouring slots of cache rows, int32 `[B, C]` each.

    length 0 is an absent run.  branch: index into W of the context.  position: of the run's first
    slot, as the query sees it, after re-encoding.
    used `[B]`: runs of each row; no implementation visits a run at or beyond it.
    """

    row: Array
    first: Array
    length: Array
    branch: Array
    position: Array
    used: PerRow

    def present(self) -> Runs:
        """Return the same runs, with length 0 for those at or beyond `used`."""
        column = jnp.arange(self.row.shape[1])
        length = jnp.where(column < self.used[:, None], self.length, 0)
        return dataclasses.replace(self, length=length)

    def within(self, query_position: PerRow, window: Array | int) -> Runs:
        """Cut off the slots that queries at `query_position [B]`, and later ones, do not see."""
        outside = query_position[:, None] + 1 - window - self.position
        cut = jnp.clip(outside, 0, self.length)
        return dataclasses.replace(
            self,
            first=self.first + cut,
            length=self.length - cut,
            position=self.position + cut,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ContextPart:
    """A cache that is read and never written, and the runs of it that are read."""

    heads: CachedHeads
    runs: Runs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """All runs of one part in blocks of at most Z slots; the first `count` exist.

    fields `[X, 5]` int32: the row of the batch that reads the block; row, first, length and branch as
    of a run.
    """

    fields: Array
    count: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """All that queries read besides the new tokens.

    cos, sin `[B, W, H/2]` float32: the rotation by each branch's shift.
    scalars `[L, B, W, 4]` float32: (aK, bK, aV, bV).
    query_position `[B]` int32: of the first new token.
    blocks: of each part, where they are laid out once for all layers; see `api.lay_out`.
    """

    parts: tuple[ContextPart, ...]
    cos: Array
    sin: Array
    scalars: Array
    query_position: PerRow
    blocks: tuple[Blocks, ...] | None = None
