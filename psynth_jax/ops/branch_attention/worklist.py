"""The work list of a kernel: which block of slots of which cache row a query row reads at which step.

Sources (new tokens, own cache, parts of the context) are lists of segments; a segment is cut where blocks of its cache end,
and blocks that no segment touches are on no list:

    row r of a cache   | . . s s | s s s s | s . . . | . . . . |        segment (row r, first 2, length 7), blocks of 4
    steps of the list    0         1         2                          three steps; the last block is not fetched

Plain index arithmetic on small int32 arrays, computed next to the kernel and handed to it as scalars.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.ops.branch_attention.types import Segments


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WorkList:
    """Int32 arrays; X counts the segments of all sources of a query row, in order.

    row, first, stop, branch `[B, X]`: slots `first .. stop - 1` of `row`.  block: index of the first block.
    begin, end: steps of the segment.  segment `[B, steps]`: which segment a step belongs to; steps past the last one
    repeat it.  source_begin, source_end `[sources, B]`: steps of each source.  total `[B]`: steps with work.
    """

    row: Array
    first: Array
    stop: Array
    branch: Array
    block: Array
    begin: Array
    end: Array
    segment: Array
    source_begin: Array
    source_end: Array
    total: Array


def work_list(sources: Sequence[Segments], slots: Sequence[int], sizes: Sequence[int]) -> WorkList:
    """Lay out the steps of every query row.

    Args:
      sources: segments `[B, C]` of each source; length 0 is no segment.
      slots, sizes: capacity of each source's rows, and the slots of a block, which divide it.
    """

    def joined(field: str) -> Array:
        return jnp.concatenate([getattr(source, field) for source in sources], axis=1).astype(jnp.int32)

    row, first, length, branch = (joined(field) for field in ("row", "first", "length", "branch"))
    columns = [source.row.shape[1] for source in sources]
    size = jnp.repeat(jnp.array(sizes, jnp.int32), jnp.array(columns), total_repeat_length=sum(columns))
    block = first // size
    count = jnp.where(length > 0, (first + length - 1) // size - block + 1, 0)
    end = jnp.cumsum(count, axis=1, dtype=jnp.int32)
    begin = end - count
    total = end[:, -1]
    # A segment that begins inside of a block touches one block more than its length fills.
    most = sum(n * (capacity // z + 1) for n, capacity, z in zip(columns, slots, sizes, strict=True))
    step = jnp.minimum(jnp.arange(most), jnp.maximum(total - 1, 0)[:, None])
    segment = jnp.minimum((end[:, None] <= step[..., None]).sum(axis=-1, dtype=jnp.int32), sum(columns) - 1)
    last = [sum(columns[: n + 1]) - 1 for n in range(len(columns))]
    source_end = jnp.stack([end[:, column] for column in last])
    source_begin = jnp.concatenate([jnp.zeros_like(source_end[:1]), source_end[:-1]])
    return WorkList(row, first, first + length, branch, block, begin, end, segment, source_begin, source_end, total)
