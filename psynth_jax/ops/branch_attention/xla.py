"""The folded form in plain XLA, in blocks: cached keys and values are read where they lie, once per block of queries.

    logit   c q . (aK R(-shift) k + bK)   =   aK c (R(shift) q) . k  +  c bK sum(q)
    output  sum p (aV v + bV)             =   aV sum p v             +  bV sum p

Re-encoding turns the *query* once per branch; the mapper is a scale and a shift of logits and accumulator.  Blocks of
queries meet blocks of slots under a running softmax, so no array grows with T times the cached slots, and the number of
blocks visited is the number that is filled, not the capacity.
`xla_vjp.py` is the way back over the same blocks.

Queries are grouped by the key head that they read, all tokens of a group in one axis: `[B, K, M, H]` with `M = T * G`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention import differentiable
from psynth_jax.ops.branch_attention.differentiable import Inputs, Kernel
from psynth_jax.ops.branch_attention.types import Context, ContextPart, OwnCache
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.ops.partial import Partial, empty, finalize, level, merge

SLOT_BLOCK = 512  # slots per step: keys and values of a block stay in a CPU core's cache
QUERY_BLOCK = 256  # query tokens per step: bounds the logits of cached slots in memory to N * 256 * 512 floats
CAUSAL_BLOCK = 128  # query tokens that meet the new keys at once: half of the logits of its last 128 keys are masked
MANY_ROWS = 128  # of queries, M: from here on, masking a block costs more than a second loop for blocks without a mask

Carry = TypeVar("Carry")


def attend(
    q: Array,
    k: Array,
    v: Array,
    own: OwnCache | None,
    context: Context | None,
    layer: Array | int,
    scale: float,
    with_own: Array | None,
    dtype: jax.typing.DTypeLike,
    window: Array | None = None,
) -> tuple[Array, Array]:
    """Return out `[B, T, N, H]` in dtype and level `[B, T, N]`; see `api.branch_attention_partial`.

    Differentiable in q, k, v and the mapper's scalars; caches are constants.
    """
    inputs = jax.tree.map(jnp.asarray, Inputs(q, k, v, own, context, layer, window, with_own))
    return differentiable.attend(Kernel(_forward, _backward), inputs, scale, dtype)


def _forward(inputs: Inputs, scale: float, dtype: Any) -> tuple[Array, Array]:
    q, k, v, context, layer = inputs.q, inputs.k, inputs.v, inputs.context, inputs.layer
    window, with_own = inputs.window, inputs.with_own
    batch, tokens = q.shape[:2]
    group = q.shape[2] // k.shape[2]
    grouped, new_k, new_v = by_head(q, group), by_head(k), by_head(v)
    own = own_or_none(inputs.own, with_own)

    def cached(row: Array, queries: Array, token: Array) -> Partial:  # queries [1, K, M, H] of one row
        seen = empty(queries.shape[:-1], queries.shape[-1])
        if own is not None and tokens > 1:
            mine = OwnCache(own.heads, own.start[row][None])
            seen = _own(queries, mine, layer, scale, row, oldest_slot(mine, token, window))
        return seen if context is None else merge(seen, _context(queries, row, context, layer, scale))

    new = _new(grouped, new_k, new_v, group, scale, window, with_own)
    blocks = []
    for first, end in query_blocks(tokens, QUERY_BLOCK):
        seen, queries = jax.tree.map(lambda x, a=first * group, b=end * group: x[:, :, a:b], (new, grouped))
        token = jnp.repeat(jnp.arange(first, end), group)  # [M]
        if own is not None and tokens == 1:  # decode: all rows share one loop over their own slots
            seen = merge(seen, _own(queries, own, layer, scale, 0, oldest_slot(own, token, window)))
        if context is not None or (own is not None and tokens > 1):
            seen = merge(seen, _over_rows(functools.partial(cached, token=token), queries))
        blocks.append((finalize(seen).astype(dtype), level(seen.row_max, seen.row_sum)))
    out, levels = (jnp.concatenate(found, axis=2) for found in zip(*blocks, strict=True))
    return by_token(out, batch, tokens), by_token(levels, batch, tokens)


def _backward(*arguments: Any) -> tuple[Array, Array, Array, Array | None]:
    from psynth_jax.ops.branch_attention import xla_vjp

    return xla_vjp.backward(*arguments)


def by_head(x: Array, group: int = 1) -> Array:
    """Return `[B, T, K * G, ...]` as `[B, K, T * G, ...]`: what reads one key head, side by side."""
    batch, tokens, heads, *rest = x.shape
    return x.reshape(batch, tokens, heads // group, group, *rest).swapaxes(1, 2).reshape(batch, heads // group, -1, *rest)


def by_token(x: Array, batch: int, tokens: int) -> Array:
    """Undo `by_head`: `[B, K, T * G, ...]` as `[B, T, K * G, ...]`."""
    split = x.reshape(batch, x.shape[1], tokens, -1, *x.shape[3:])
    return split.swapaxes(1, 2).reshape(batch, tokens, -1, *x.shape[3:])


def query_blocks(tokens: int, size: int) -> list[tuple[int, int]]:
    """Cut T into blocks: the first token of each, and the one after its last."""
    return [(first, min(first + size, tokens)) for first in range(0, tokens, size)]


def causal(first: int, end: int, group: int, window: Array | None, with_own: Array | None, keys: range) -> Array:
    """Return which of some new keys the queries of tokens `first .. end - 1` see, `[M, Z]`."""
    behind = jnp.repeat(jnp.arange(first, end), group)[:, None] - jnp.arange(keys.start, keys.stop)
    mask = behind >= 0
    if window is not None:
        mask &= behind < window
    return mask if with_own is None else mask & with_own


def oldest_slot(own: OwnCache, token: Array, window: Array | None) -> Array | None:
    """Return the first slot of its row that each query sees, `[rows, M]`, of the new tokens `token [M]`; None: all see 0."""
    return None if window is None else jnp.maximum(own.start[:, None] + token - window + 1, 0)


def own_or_none(own: OwnCache | None, with_own: Array | None) -> OwnCache | None:
    """Empty the own cache where it does not count."""
    if own is None or with_own is None:
        return own
    return OwnCache(own.heads, jnp.where(with_own, own.start, 0))


def _over_rows(function: Callable[[Array, Array], Partial], grouped: Array) -> Partial:
    """Stack `function(b, grouped[b:b+1])` over b, dropping the inner row axis."""
    if grouped.shape[0] == 1:
        return function(jnp.int32(0), grouped)
    stacked = jax.lax.map(lambda item: function(item[0], item[1][None]), (jnp.arange(grouped.shape[0]), grouped))
    return jax.tree.map(lambda x: x[:, 0], stacked)


def _new(q: Array, k: Array, v: Array, group: int, scale: float, window: Array | None, with_own: Array | None) -> Partial:
    """Causal attention of `q [B, K, M, H]` to the new keys `[B, K, T, H]`, in blocks of tokens."""
    blocks = []
    for first, end in query_blocks(k.shape[2], CAUSAL_BLOCK):
        scaled = scale * q[:, :, first * group : end * group]
        mask = causal(first, end, group, window, with_own, range(first, end))
        seen = _attend(scaled, k[:, :, first:end], v[:, :, first:end], mask)
        if first:
            before = with_own if window is None else causal(first, end, group, window, with_own, range(first))
            seen = merge(seen, _attend(scaled, k[:, :, :first], v[:, :, :first], before))
        blocks.append(seen)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *blocks)


def _own(
    q: Array,
    own: OwnCache,
    layer: Array,
    scale: float,
    first_row: Array | int,
    oldest: Array | None,
) -> Partial:
    """Attention of `q [B, K, M, H]` to the filled slots of the own rows `first_row ..`, from `oldest [B, M]` on."""
    scaled = scale * q

    def visit(seen: Partial, k: Array, v: Array, filled: Array | None) -> Partial:
        return merge(seen, _attend(scaled, k, v, filled))

    nothing, begin = empty(q.shape[:-1], q.shape[-1]), 0 if oldest is None else oldest.min()
    return over_blocks(visit, nothing, own.heads, layer, first_row, begin, own.start, q.shape[2], oldest)


def _context(q: Array, row: Array, context: Context, layer: Array, scale: float) -> Partial:
    """Attention of `q [1, K, M, H]`, which belongs to batch row `row`, to all segments of that row."""
    seen = empty(q.shape[:-1], q.shape[-1])
    total = q.astype(jnp.float32).sum(axis=-1)
    for part in context.parts:

        def over_segment(index: Array, seen: Partial, part: ContextPart = part) -> Partial:
            segments = jax.tree.map(lambda x: x[row, index], part.segments)
            cos, sin = context.cos[row, segments.branch], context.sin[row, segments.branch]
            key_scale, key_bias, value_scale, value_bias = context.scalars[layer, row, segments.branch]
            turned = (rope.rotate(q, cos, sin) * (scale * key_scale)).astype(q.dtype)
            logit_shift = scale * key_bias * total

            def visit(seen: Partial, k: Array, v: Array, inside: Array | None) -> Partial:
                here = _attend(turned, k, v, inside, logit_shift)
                out = value_scale * here.out + value_bias * here.row_sum[..., None]
                return merge(seen, Partial(out, here.row_max, here.row_sum))

            end = (segments.first + segments.length)[None]
            return over_blocks(visit, seen, part.heads, layer, segments.row, segments.first, end, q.shape[2])

        seen = jax.lax.fori_loop(0, part.segments.row.shape[1], over_segment, seen)
    return seen


def over_blocks(
    visit: Callable[[Carry, Array, Array, Array | None], Carry],
    carry: Carry,
    heads: CachedHeads,
    layer: Array | int,
    first_row: Array | int,
    first: Array | int,
    end: Array,
    query_rows: int = 0,
    oldest: Array | None = None,
) -> Carry:
    """Fold `visit(carry, k, v, inside)` over blocks of slots `first .. end - 1` of rows `first_row ..`; end `[rows]`.

    A block has `SLOT_BLOCK` slots, or all that a row has.  k, v `[rows, K, Z, H]`, v with zeros where
    `inside [rows, 1, 1, Z]` is not set: a weight of 0 times NaN would be NaN.  With `oldest [rows, M]`,
    the first slot that each query sees, inside is `[rows, 1, M, Z]`.
    For many query rows, blocks that are whole for all rows come first, with inside None: masking costs as much as the rest
    of the softmax.
    """
    size, rows = min(SLOT_BLOCK, heads.slots), end.shape[0]

    def whole_block(index: Array, carry: Carry) -> Carry:
        return visit(carry, *heads.read(layer, first_row, rows, first + index * size, size), None)

    def ragged_block(index: Array, carry: Carry) -> Carry:
        begin = first + index * size
        start = jnp.minimum(begin, heads.slots - size)
        k, v = heads.read(layer, first_row, rows, start, size)
        slots = start + jnp.arange(size)
        # A block that would pass the cache's end is moved back: its first slots were seen by the block before.
        inside = (slots >= begin) & (slots < end[:, None])
        seen = inside[:, None, None]
        if oldest is not None:
            seen = seen & (slots >= oldest[:, None, :, None])
        return visit(carry, k, jnp.where(inside[:, None, :, None], v, 0), seen)

    whole: Array | int = 0
    if query_rows >= MANY_ROWS and oldest is None:
        whole = (end.min() - first) // size
        carry = jax.lax.fori_loop(0, whole, whole_block, carry)
    return jax.lax.fori_loop(whole, (end.max() - first + size - 1) // size, ragged_block, carry)


def logits_of(q: Array, k: Array, logit_shift: Array | None = None) -> Array:
    """Return logits `[B, K, M, Z]` float32 of scaled queries `[B, K, M, H]` and keys `[B, K, Z, H]`.

    logit_shift `[B, K, M]` is added, if there is one.
    """
    logits = jnp.einsum("bkmh,bkzh->bkmz", q, k, preferred_element_type=jnp.float32)
    return logits if logit_shift is None else logits + logit_shift[..., None]


def _attend(q: Array, k: Array, v: Array, mask: Array | None, logit_shift: Array | None = None) -> Partial:
    """Softmax of scaled queries `[B, K, M, H]` over keys and values `[B, K, Z, H]`; mask broadcasts against the logits."""
    logits = logits_of(q, k, logit_shift)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    row_max = logits.max(axis=-1)
    weights = jnp.exp(logits - jnp.where(jnp.isneginf(row_max), 0.0, row_max)[..., None])
    out = jnp.einsum("bkmz,bkzh->bkmh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return Partial(out, row_max, weights.sum(axis=-1))
