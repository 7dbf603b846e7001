"""The work list of a kernel: which block of slots of which cache row a query row reads at which step.

Sources (the new tokens, parts of the context) are lists of runs; a run is cut where blocks of its
cache end, and blocks that no run touches are on no list:

    row r of a cache   | . . s s | s s s s | s . . . | . . . . |        run (row r, first 2, length 7), blocks of 4
    steps of the list    0         1         2                          three steps; the last block is not fetched

Plain index arithmetic on small int32 arrays, computed next to the kernel and handed to it as scalars.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array, PerRow
from psynth_jax.ops.branch_attention.differentiable import Inputs
from psynth_jax.ops.branch_attention.types import Runs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WorkList:
    """Int32 arrays; X counts the runs of all sources of a query row, in order.

    row, first, stop, branch `[B, X]`: slots `first .. stop - 1` of `row`.  block: index of the first block.
    reach: with a window, token t sees slot s if `t < s + reach`.
    begin, end: steps of the run.  run `[B, steps]`: which run a step belongs to; steps past the last one repeat it.
     source_begin, source_end `[sources, B]`: steps of each source.  total `[B]`: steps with work.
    """

    row: Array
    first: Array
    stop: Array
    branch: Array
    reach: Array
    block: Array
    begin: Array
    end: Array
    run: Array
    source_begin: Array
    source_end: Array
    total: Array


def query_position(inputs: Inputs) -> PerRow:
    """Return the position of the first new token, `[B]`; without a context, where it is all the same, 0."""
    if inputs.context is None:
        return jnp.zeros(inputs.q.shape[0], jnp.int32)
    return inputs.context.query_position


def new_tokens(inputs: Inputs, branch: int = 0) -> Runs:
    """Return the new tokens as a run of each row, at slot 0 of row b; none where they do not count."""
    batch, tokens = inputs.q.shape[:2]
    one = jnp.ones((batch, 1), jnp.int32)
    length = tokens * one
    if inputs.with_new is not None:
        length = jnp.where(inputs.with_new, length, 0)
    row, position = jnp.arange(batch, dtype=jnp.int32)[:, None], query_position(inputs)[:, None]
    return Runs(row, 0 * one, length, branch * one, position, one[:, 0])


def joined_runs(sources: Sequence[Runs], query_position: PerRow, window: Array | None) -> tuple[Runs, Array]:
    """Put the runs of all sources side by side, `[B, X]`, without what no query sees.

    Also returns, with a window, how far each reaches: token t sees the run's n-th slot if
    `t < n + reach`.  Without one it is 0.
    """
    found = []
    for source in sources:
        runs = source.present()
        found.append(runs if window is None else runs.within(query_position, window))

    def joined(field: str) -> Array:
        return jnp.concatenate([getattr(runs, field) for runs in found], axis=1).astype(jnp.int32)

    row = joined("row")
    used = jnp.full(row.shape[:1], row.shape[1], jnp.int32)
    together = Runs(
        row,
        joined("first"),
        joined("length"),
        joined("branch"),
        joined("position"),
        used,
    )
    if window is None:
        return together, jnp.zeros_like(together.row)
    return together, together.position - query_position[:, None] + window


def work_list(
    sources: Sequence[Runs],
    slots: Sequence[int],
    sizes: Sequence[int],
    query_position: PerRow,
    window: Array | None,
) -> WorkList:
    """Lay out the steps of every query row.

    Args:
      sources: runs of each source.
      slots, sizes: capacity of each source's rows, and the slots of a block, which divide it.
      query_position, window: see `types.Context` and `api.branch_attention`.
    """
    runs, reach = joined_runs(sources, query_position, window)
    row, first, length, branch = runs.row, runs.first, runs.length, runs.branch
    columns = [source.row.shape[1] for source in sources]
    size = jnp.repeat(jnp.array(sizes, jnp.int32), jnp.array(columns), total_repeat_length=sum(columns))
    block = first // size
    count = jnp.where(length > 0, (first + length - 1) // size - block + 1, 0)
    end = jnp.cumsum(count, axis=1, dtype=jnp.int32)
    begin = end - count
    total = end[:, -1]
    # A run that begins inside of a block touches one block more than its length fills.
    most = sum(n * (capacity // z + 1) for n, capacity, z in zip(columns, slots, sizes, strict=True))
    step = jnp.minimum(jnp.arange(most), jnp.maximum(total - 1, 0)[:, None])
    run = jnp.minimum((end[:, None] <= step[..., None]).sum(axis=-1, dtype=jnp.int32), sum(columns) - 1)
    last = [sum(columns[: n + 1]) - 1 for n in range(len(columns))]
    source_end = jnp.stack([end[:, column] for column in last])
    source_begin = jnp.concatenate([jnp.zeros_like(source_end[:1]), source_end[:-1]])
    return WorkList(
        row,
        first,
        first + length,
        branch,
        reach - first,
        block,
        begin,
        end,
        run,
        source_begin,
        source_end,
        total,
    )
