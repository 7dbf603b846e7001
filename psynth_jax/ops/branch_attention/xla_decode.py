"""One new token a row: a list of the blocks of slots that are really read, several of them at once.

    row 0   | s s s s s |           row 1   | s s |         row 2   idle
    list      0 . . 1 .                       2 .           nothing

Empty runs and idle rows are on no list, so they cost nothing.  The list does not depend on the
layer: `api.lay_out` makes it once a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention.types import Blocks, Context, ContextPart, Runs
from psynth_jax.ops.branch_attention.xla_blocks import attend_block
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.ops.partial import Partial, weight
from psynth_jax.ops.side_by_side import side_by_side

SLOTS = 192  # of a block: larger ones waste more of a run's last, smaller ones cost more steps
IN_BOUNDS: Final[Mapping[str, Any]] = {"mode": "promise_in_bounds", "wrap_negative_indices": False}
FEWEST, MOST = 2, 8  # blocks that are read in one step: of a batch of one row, of eight rows and more


def lay_out(runs: Runs, slots: int) -> Blocks:
    """Cut the runs of all rows of the batch into blocks.  slots: S of the cache they lie in."""
    size = min(SLOTS, slots)
    batch, columns = runs.row.shape
    at_once = _at_once(batch)
    most = batch * columns * -(-slots // size)
    most = -(-most // at_once) * at_once  # the last step reads no block twice
    columns_of = runs.row, runs.first, runs.present().length, runs.branch
    row, first, length, branch = (x.ravel() for x in columns_of)
    count = -(-length // size)
    end = jnp.cumsum(count)
    run = jnp.repeat(jnp.arange(batch * columns), count, total_repeat_length=most)  # [X]
    skipped = (jnp.arange(most) - (end - count)[run]) * size
    fields = (
        run // columns,
        row[run],
        first[run] + skipped,
        jnp.clip(length[run] - skipped, 0, size),  # 0 behind the end of the list
        branch[run],
    )
    return Blocks(jnp.stack(fields, axis=1), end[-1])


def _at_once(batch: int) -> int:
    return max(FEWEST, min(MOST, batch))


def attend(
    q: Array,
    new: Partial,
    context: Context,
    layer: Array,
    scale: float,
    window: Array | None,
) -> Partial:
    """Merge `new`, what `q [B, K, G, H]` saw of the new tokens, with attention to all runs."""
    seen = new
    for number, part in enumerate(context.parts):
        if context.blocks is not None:
            blocks = context.blocks[number]
        elif window is None:
            blocks = lay_out(part.runs, part.heads.slots)
        else:  # with a single token, a window cuts off the begin of a run
            runs = part.runs.within(context.query_position, window)
            blocks = lay_out(runs, part.heads.slots)
        seen = _over_part(q, seen, part, blocks, context, layer, scale)
    return seen


def _over_part(
    q: Array,
    seen: Partial,
    part: ContextPart,
    blocks: Blocks,
    context: Context,
    layer: Array,
    scale: float,
) -> Partial:
    """Merge attention to all blocks of one part into what was seen.

    Everything that is gathered for a block, or added up for a row, is one array: on a CPU each
    gather and each scatter costs about as much as the arithmetic, to run and to compile.  So does
    what JAX does about negative indices; there are none.
    """
    items = _at_once(q.shape[0])
    branches = context.cos.shape[1]
    per_branch = side_by_side(context.cos, context.sin, context.scalars[layer])  # [B, W, H + 4]
    per_branch = per_branch.reshape(-1, per_branch.shape[-1])
    half = context.cos.shape[-1]

    def read(step: Array, seen: tuple[Array, Array]) -> tuple[Array, Array]:
        """Merge the blocks of one step into the sums `[B, K, G, H + 1]` and maxima `[B, K, G]`."""
        sums, row_max = seen
        fields = jax.lax.dynamic_slice_in_dim(blocks.fields, step * items, items, allow_negative_indices=False)
        query, row, slot, length, branch = fields.T
        k, v, inside = _slots(part.heads, layer, row, slot, length)

        turning = _at(per_branch, query * branches + branch)[:, None, None]  # [items, 1, 1, H + 4]
        cos, sin, four = jnp.split(turning, (half, 2 * half), axis=-1)
        key_scale, key_bias, value_scale, value_bias = jnp.split(four, 4, axis=-1)
        rows = _at(q, query)  # [items, K, G, H]
        total = rows.astype(jnp.float32).sum(axis=-1)
        turned = (rope.rotate(rows, cos, sin) * (scale * key_scale)).astype(q.dtype)
        here = attend_block(turned, k, v, inside, scale * key_bias[..., 0] * total)
        out = value_scale * here.out + value_bias * here.row_sum[..., None]

        # Items may belong to one row, so the new maximum is agreed on before anything is added.
        new_max = row_max.at[query].max(here.row_max, **IN_BOUNDS)
        fade, share = weight(row_max, new_max), weight(here.row_max, _at(new_max, query))
        added = share[..., None] * side_by_side(out, here.row_sum[..., None])
        return (sums * fade[..., None]).at[query].add(added, **IN_BOUNDS), new_max

    sums = side_by_side(seen.out, seen.row_sum[..., None])
    steps = -(-blocks.count // items)
    sums, row_max = jax.lax.fori_loop(0, steps, read, (sums, seen.row_max))
    return Partial(sums[..., :-1], row_max, sums[..., -1])


def _at(x: Array, index: Array) -> Array:
    return x.at[index].get(**IN_BOUNDS)


def _slots(
    heads: CachedHeads,
    layer: Array,
    row: Array,
    first: Array,
    length: Array,
) -> tuple[Array, Array, Array]:
    """Return k and v `[items, K, Z, H]` of blocks, and which slots are theirs `[items, 1, 1, Z]`.

    v is zero outside of a block: a weight of 0 times NaN would be NaN.
    """
    size = min(SLOTS, heads.slots)
    start = jnp.minimum(first, heads.slots - size)  # a block that would pass the end is moved back
    slot = start[:, None] + jnp.arange(size)
    inside = (slot >= first[:, None]) & (slot < (first + length)[:, None])  # [items, Z]
    # One slice an item, and no loop over them: XLA on a CPU reads slices several times faster than it
    # gathers, and a loop would copy them with one core, and v once more for the mask.
    keys, values = [], []
    for item in range(first.shape[0]):
        k, v = heads.read(layer, row[item], 1, start[item], size)
        keys.append(k)
        values.append(jnp.where(inside[item, :, None], v, 0))
    return jnp.concatenate(keys), jnp.concatenate(values), inside[:, None, None]
