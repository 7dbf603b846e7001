"""What both passes of the XLA form share: how queries are grouped, and the walk over cached slots.

    run of a row    | s s s s s s s s s s s |
    blocks            0 . . . 1 . . . 2 . 3      the last, smaller ones are masked; a row's end moves them back

Queries are grouped by the key head that they read, all tokens of a group in one axis:
`[B, K, M, H]` with `M = T * G`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.ops.branch_attention.types import Context, ContextPart
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.ops.partial import Partial

SLOT_BLOCK = 512  # slots per step: keys and values of a block stay in a CPU core's cache
LAST_BLOCK = 128  # of those that are masked: a run of 130 slots costs two of them, not 512 slots
QUERY_BLOCK = 256  # query tokens per step: logits of cached slots are at most N * 256 * 512
# From so many query rows M on, masking a block costs more than a second loop for whole blocks.
MANY_ROWS = 128

Carry = TypeVar("Carry")


def by_head(x: Array, group: int = 1) -> Array:
    """Return `[B, T, K * G, ...]` as `[B, K, T * G, ...]`: what reads one key head."""
    batch, tokens, heads, *rest = x.shape
    split = x.reshape(batch, tokens, heads // group, group, *rest).swapaxes(1, 2)
    return split.reshape(batch, heads // group, -1, *rest)


def by_token(x: Array, batch: int, tokens: int) -> Array:
    """Undo `by_head`: `[B, K, T * G, ...]` as `[B, T, K * G, ...]`."""
    split = x.reshape(batch, x.shape[1], tokens, -1, *x.shape[3:])
    return split.swapaxes(1, 2).reshape(batch, tokens, -1, *x.shape[3:])


def query_blocks(tokens: int, size: int) -> list[tuple[int, int]]:
    """Cut T into blocks: the first token of each, and the one after its last."""
    return [(first, min(first + size, tokens)) for first in range(0, tokens, size)]


def causal(
    first: int,
    end: int,
    group: int,
    window: Array | None,
    with_new: Array | None,
    keys: range,
) -> Array:
    """Return which of some new keys the queries of tokens `first .. end - 1` see, `[M, Z]`."""
    token = jnp.repeat(jnp.arange(first, end), group)
    behind = token[:, None] - jnp.arange(keys.start, keys.stop)
    mask = behind >= 0
    if window is not None:
        mask &= behind < window
    return mask if with_new is None else mask & with_new


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of one row of the batch, as a block of its queries reads it.

    row, first, end: slots `first .. end - 1` of a cache row.  branch: index into W.
    cos, sin `[H/2]`: the branch's rotation.  scalars `[4]`: (aK, bK, aV, bV) of this layer.
    oldest `[M]`: the first slot that each query sees; None: all see the run whole.
    """

    heads: CachedHeads
    layer: Array
    row: Array
    first: Array
    end: Array
    branch: Array
    cos: Array
    sin: Array
    scalars: Array
    oldest: Array | None


def over_runs(
    visit: Callable[[Run, Carry], Carry],
    carry: Carry,
    context: Context,
    layer: Array,
    batch_row: Array,
    token: Array,
    window: Array | None,
) -> Carry:
    """Fold `visit` over all runs of one row of the batch; token `[M]`: of each of its queries."""
    for part in context.parts:

        def over_run(index: Array, carry: Carry, part: ContextPart = part) -> Carry:
            runs = part.runs
            columns = runs.row, runs.first, runs.length, runs.branch, runs.position
            row, first, length, branch, position = (x[batch_row, index] for x in columns)
            oldest = None
            if window is not None:
                outside = context.query_position[batch_row] + token + 1 - window - position
                oldest = first + jnp.maximum(outside, 0)
            at = batch_row, branch
            run = Run(
                part.heads,
                layer,
                row,
                first,
                first + length,
                branch,
                context.cos[at],
                context.sin[at],
                context.scalars[layer, batch_row, branch],
                oldest,
            )
            return visit(run, carry)

        carry = jax.lax.fori_loop(0, part.runs.used[batch_row], over_run, carry)
    return carry


def over_blocks(
    visit: Callable[[Carry, Array, Array, Array | None], Carry],
    carry: Carry,
    run: Run,
    query_rows: int = 0,
) -> Carry:
    """Fold `visit(carry, k, v, seen)` over the blocks of a run.

    For many query rows without a window, whole blocks of `SLOT_BLOCK` slots come first, with seen
    None: masking costs as much as the rest of the softmax.  All else is in blocks of `LAST_BLOCK`.  k, v `[1, K, Z, H]`, v
    with zeros outside of the run: a weight of 0 times NaN would be NaN.  seen `[1, 1, 1 or M, Z]`.
    """
    heads = run.heads
    whole_size = min(SLOT_BLOCK, heads.slots)
    size = min(LAST_BLOCK, whole_size)
    first = run.first if run.oldest is None else run.oldest.min()

    def whole_block(index: Array, carry: Carry) -> Carry:
        k, v = heads.read(run.layer, run.row, 1, first + index * whole_size, whole_size)
        return visit(carry, k, v, None)

    rest = first
    if query_rows >= MANY_ROWS and run.oldest is None:
        count = (run.end - first) // whole_size
        carry = jax.lax.fori_loop(0, count, whole_block, carry)
        rest = first + count * whole_size

    def last_block(index: Array, carry: Carry) -> Carry:
        begin = rest + index * size
        start = jnp.minimum(begin, heads.slots - size)
        k, v = heads.read(run.layer, run.row, 1, start, size)
        slots = start + jnp.arange(size)
        # A block that would pass the row's end is moved back: the block before saw its first slots.
        inside = (slots >= begin) & (slots < run.end)
        seen = inside[None, None, None]
        if run.oldest is not None:
            seen = seen & (slots >= run.oldest[None, None, :, None])
        return visit(carry, k, jnp.where(inside[:, None], v, 0), seen)

    return jax.lax.fori_loop(0, (run.end - rest + size - 1) // size, last_block, carry)


def logits_of(q: Array, k: Array, logit_shift: Array | None = None) -> Array:
    """Return logits `[B, K, M, Z]` of scaled queries `[B, K, M, H]` and keys `[B, K, Z, H]`.

    logit_shift `[B, K, M]` is added, if there is one.
    """
    logits = jnp.einsum("bkmh,bkzh->bkmz", q, k, preferred_element_type=jnp.float32)
    return logits if logit_shift is None else logits + logit_shift[..., None]


def attend_block(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    logit_shift: Array | None = None,
) -> Partial:
    """Softmax of scaled queries `[B, K, M, H]` over keys and values `[B, K, Z, H]`.

    mask broadcasts against the logits.
    """
    logits = logits_of(q, k, logit_shift)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    row_max = logits.max(axis=-1)
    weights = jnp.exp(logits - jnp.where(jnp.isneginf(row_max), 0.0, row_max)[..., None])
    # Not v's dtype alone: a cache of fewer bits must not make weights less precise than those of
    # new tokens, or an answer would depend on where chunks end.
    weighed = weights.astype(jnp.promote_types(q.dtype, v.dtype))
    out = jnp.einsum("bkmz,bkzh->bkmh", weighed, v, preferred_element_type=jnp.float32)
    return Partial(out, row_max, weights.sum(axis=-1))
