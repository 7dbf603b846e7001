"""What attention reads besides the new tokens: the row's own cache, and segments of any cache.

    own cache      row b     [ o  o  o  .  .  .  . ]        slots 0 .. start - 1
    context cache  row r     [ .  .  s  s  s  s  . ]        segment (row r, first 2, length 4, branch w)

Every implementation imports these; the dispatcher in api.py imports the implementations.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import jax

from psynth_jax.axes import Array, PerRow
from psynth_jax.ops.cached_heads import CachedHeads

Implementation: TypeAlias = Literal["auto", "xla", "pallas_tpu", "pallas_gpu", "reference"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OwnCache:
    """What the query rows have cached before this call: cache row b belongs to query row b.

    heads: R = B rows.  start `[B]`: slots that are filled; every query of row b sees slots `0 .. start[b] - 1`.
    """

    heads: CachedHeads
    start: PerRow


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
    """Pieces of cache rows, int32 `[B, C]` each.  length 0 is an absent segment.  branch indexes W of the context."""

    row: Array
    first: Array
    length: Array
    branch: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ContextPart:
    """A cache that is read and never written, and what is read of it."""

    heads: CachedHeads
    segments: Segments


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """All that a query reads besides its own row.

    cos, sin `[B, W, H/2]` float32: the rotation by each branch's shift.  scalars `[L, B, W, 4]` float32: (aK, bK, aV, bV).
    """

    parts: tuple[ContextPart, ...]
    cos: Array
    sin: Array
    scalars: Array
