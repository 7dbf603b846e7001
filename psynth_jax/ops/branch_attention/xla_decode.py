"""One new token a row: a list of the blocks of slots that are really read, several of them at once.

    row 0   | s s s s s |           row 1   | s s |         row 2   idle
    list      0 . . 1 .                       2 .           nothing

Empty runs and idle rows are on no list, so they cost nothing.  The list does not depend on the
layer: `api.lay_out` makes it once a step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention.types import Blocks, Context, ContextPart, Runs
from psynth_jax.ops.branch_attention.xla_blocks import attend_block
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.ops.partial import Partial, weight

SLOTS = 192  # of a block: larger ones waste more of a run's last, smaller ones cost more steps
ITEMS = 8  # blocks read in one step; what remains of the list is read one by one


def lay_out(runs: Runs, slots: int) -> Blocks:
    """Cut the runs of all rows of the batch into blocks.  slots: S of the cache they lie in."""
    size = min(SLOTS, slots)
    batch, columns = runs.row.shape
    most = batch * columns * -(-slots // size)
    columns_of = runs.row, runs.first, runs.present().length, runs.branch
    row, first, length, branch = (x.ravel() for x in columns_of)
    count = -(-length // size)
    end = jnp.cumsum(count)
    run = jnp.repeat(jnp.arange(batch * columns), count, total_repeat_length=most)  # [X]
    skipped = (jnp.arange(most) - (end - count)[run]) * size
    return Blocks(
        query=run // columns,
        row=row[run],
        first=first[run] + skipped,
        length=jnp.clip(length[run] - skipped, 0, size),
        branch=branch[run],
        count=end[-1],
    )


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
    scalars = context.scalars[layer]  # [B, W, 4]
    total = q.astype(jnp.float32).sum(axis=-1)  # [B, K, G]

    def read(first: Array, items: int, seen: Partial) -> Partial:
        """Merge items `first .. first + items - 1` of the list into what was seen."""

        def some(x: Array) -> Array:
            return jax.lax.dynamic_slice(x, (first,), (items,))

        query, branch = some(blocks.query), some(blocks.branch)
        row, slot, length = some(blocks.row), some(blocks.first), some(blocks.length)
        k, v, inside = _slots(part.heads, layer, row, slot, length)
        four = scalars[query, branch].T[..., None, None]  # [4, items, 1, 1]
        key_scale, key_bias, value_scale, value_bias = four
        at = query, branch, None, None
        turned = rope.rotate(q[query], context.cos[at], context.sin[at])  # [items, K, G, H]
        turned = (turned * (scale * key_scale)[..., None]).astype(q.dtype)
        here = attend_block(turned, k, v, inside, scale * key_bias * total[query])
        out = value_scale[..., None] * here.out + (value_bias * here.row_sum)[..., None]

        # Items may belong to one row, so the new maximum is agreed on before anything is added.
        row_max = seen.row_max.at[query].max(here.row_max)
        fade, share = weight(seen.row_max, row_max), weight(here.row_max, row_max[query])
        return Partial(
            (seen.out * fade[..., None]).at[query].add(out * share[..., None]),
            row_max,
            (seen.row_sum * fade).at[query].add(here.row_sum * share),
        )

    rest: Array | int = 0
    if blocks.query.shape[0] >= ITEMS:
        groups = blocks.count // ITEMS
        seen = jax.lax.fori_loop(0, groups, lambda n, seen: read(n * ITEMS, ITEMS, seen), seen)
        rest = groups * ITEMS
    return jax.lax.fori_loop(rest, blocks.count, lambda n, seen: read(n, 1, seen), seen)


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
    # One slice an item: XLA on a CPU reads slices several times faster than it gathers.
    pairs = [heads.read(layer, row[item], 1, start[item], size) for item in range(row.shape[0])]
    k, v = (jnp.concatenate(found) for found in zip(*pairs, strict=True))
    return k, jnp.where(inside[:, None, :, None], v, 0), inside[:, None, None]
