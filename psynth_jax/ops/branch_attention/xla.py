"""The folded form in plain XLA, in blocks: cached keys and values are read where they lie, once per block of queries.

    logit   c q . (aK R(-shift) k + bK)   =   aK c (R(shift) q) . k  +  c bK sum(q)
    output  sum p (aV v + bV)             =   aV sum p v             +  bV sum p

Re-encoding turns the *query* once per branch; the mapper is a scale and a shift of logits and accumulator.  Blocks of
queries meet blocks of slots under a running softmax, so no array grows with T x S, and the number of blocks visited is the
number that is filled, not the capacity.  Loops with data-dependent lengths: forward only.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention.api import AttentionSpec, Context, ContextPart, OwnCache
from psynth_jax.ops.branch_attention.tuned import xla_tiles
from psynth_jax.ops.branch_attention.tuning_xla import XlaTiles
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.ops.partial import Partial, empty, finalize, level, merge

SLOT_BLOCK = 512  # slots per step: keys and values of a block stay in a CPU core's cache
QUERY_BLOCK = 256  # query tokens per step: bounds the logits in memory to N * 256 * 512 floats


def attend(
    q: Array,
    k: Array,
    v: Array,
    own: OwnCache | None,
    context: Context | None,
    layer: Array | int,
    spec: AttentionSpec,
    with_own: Array | None,
    dtype: jax.typing.DTypeLike,
) -> tuple[Array, Array]:
    """Return out `[B, T, N, H]` in dtype and level `[B, T, N]`; see `api.branch_attention_partial`."""
    batch, tokens, heads, width = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(batch, tokens, kv_heads, heads // kv_heads, width).transpose(0, 2, 1, 3, 4)  # [B, K, T, G, H]
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, T, H]
    cut = _tiles(grouped, own, context)
    if own is not None and with_own is not None:
        own = OwnCache(own.heads, jnp.where(with_own, own.start, 0))

    def cached(row: Array, queries: Array) -> Partial:  # queries [1, K, T, G, H] of one row
        seen = empty(queries.shape[:-1], width)
        if own is not None and tokens > 1:
            seen = _own(queries, OwnCache(own.heads, own.start[row][None]), layer, spec, row, cut.slots)
        return seen if context is None else merge(seen, _context(queries, row, context, layer, spec, cut.slots))

    blocks = []
    for first in range(0, tokens, cut.tokens):
        queries = grouped[:, :, first : first + cut.tokens]
        end = first + queries.shape[2]
        seen = _new(queries, k[:, :, :end], v[:, :, :end], first, spec, with_own)
        if own is not None and tokens == 1:  # decode: all rows share one loop over their own slots
            seen = merge(seen, _own(queries, own, layer, spec, 0, cut.slots))
        if context is not None or (own is not None and tokens > 1):
            seen = merge(seen, _over_rows(cached, queries))
        blocks.append((finalize(seen).astype(dtype), level(seen.row_max, seen.row_sum)))
    joined = blocks[0] if len(blocks) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *blocks)
    out, levels = (jnp.swapaxes(x, 1, 2).reshape(batch, tokens, heads, *x.shape[4:]) for x in joined)
    return out, levels


def _tiles(grouped: Array, own: OwnCache | None, context: Context | None) -> XlaTiles:
    """Return the tiles of a call with queries `[B, K, T, G, H]`."""
    _, kv_heads, tokens, group, width = grouped.shape
    caches = ([] if own is None else [own.heads]) + ([] if context is None else [part.heads for part in context.parts])
    most = max(caches, key=lambda heads: heads.slots, default=None)
    itemsize = grouped.dtype.itemsize
    cached, slots = (itemsize, tokens) if most is None else (most.k.dtype.itemsize, most.slots)
    return xla_tiles(tokens, group, kv_heads, width, itemsize, cached, slots, XlaTiles(QUERY_BLOCK, SLOT_BLOCK))


def _over_rows(function: Callable[[Array, Array], Partial], grouped: Array) -> Partial:
    """Stack `function(b, grouped[b:b+1])` over b, dropping the inner row axis."""
    if grouped.shape[0] == 1:
        return function(jnp.int32(0), grouped)
    stacked = jax.lax.map(lambda item: function(item[0], item[1][None]), (jnp.arange(grouped.shape[0]), grouped))
    return jax.tree.map(lambda x: x[:, 0], stacked)


def _new(q: Array, k: Array, v: Array, first: int, spec: AttentionSpec, counted: Array | None) -> Partial:
    """Causal attention of queries `first ..` (`[B, K, T, G, H]`) to the new keys up to the last of them, `[B, K, Z, H]`."""
    causal = jnp.arange(k.shape[2]) <= (first + jnp.arange(q.shape[2]))[:, None]
    if counted is not None:
        causal &= counted
    return _attend(spec.scale * q, k, v, causal[None, None, :, None], spec)


def _own(q: Array, own: OwnCache, layer: Array | int, spec: AttentionSpec, first_row: Array | int, block: int) -> Partial:
    """Attention of `q [B, K, T, G, H]` to the filled slots of the own rows `first_row ..`."""
    size = min(block, own.heads.slots)
    scaled = spec.scale * q

    def step(index: Array, seen: Partial) -> Partial:
        k, v, slots = _read(own.heads, layer, first_row, q.shape[0], index * size, size)
        # The last block is moved back inside the cache: its first slots were seen by the block before.
        filled = (slots >= index * size) & (slots < own.start[:, None])
        return merge(seen, _attend(scaled, k, _readable(v, filled), filled[:, None, None, None], spec))

    return jax.lax.fori_loop(0, _blocks(own.start.max(), size), step, empty(q.shape[:-1], q.shape[-1]))


def _context(q: Array, row: Array, context: Context, layer: Array | int, spec: AttentionSpec, block: int) -> Partial:
    """Attention of `q [1, K, T, G, H]`, which belongs to batch row `row`, to all segments of that row."""
    seen = empty(q.shape[:-1], q.shape[-1])
    total = q.astype(jnp.float32).sum(axis=-1)
    for part in context.parts:

        def over_segment(index: Array, seen: Partial, part: ContextPart = part) -> Partial:
            segments = jax.tree.map(lambda x: x[row, index], part.segments)
            cos, sin = context.cos[row, segments.branch], context.sin[row, segments.branch]
            key_scale, key_bias, value_scale, value_bias = context.scalars[layer, row, segments.branch]
            turned = (rope.rotate(q, cos, sin) * (spec.scale * key_scale)).astype(q.dtype)
            logit_shift = spec.scale * key_bias * total
            size = min(block, part.heads.slots)
            end = segments.first + segments.length

            def step(block_index: Array, seen: Partial) -> Partial:
                first = segments.first + block_index * size
                k, v, slots = _read(part.heads, layer, segments.row, 1, first, size)
                inside = ((slots >= first) & (slots < end))[None]
                here = _attend(turned, k, _readable(v, inside), inside[:, None, None, None], spec, logit_shift)
                out = value_scale * here.out + value_bias * here.row_sum[..., None]
                return merge(seen, Partial(out, here.row_max, here.row_sum))

            return jax.lax.fori_loop(0, _blocks(segments.length, size), step, seen)

        seen = jax.lax.fori_loop(0, part.segments.row.shape[1], over_segment, seen)
    return seen


def _blocks(slots: Array, size: int) -> Array:
    return (slots + size - 1) // size


def _read(
    heads: CachedHeads, layer: Array | int, first_row: Array | int, rows: int, first_slot: Array | int, size: int
) -> tuple[Array, Array, Array]:
    """Return k and v `[rows, K, size, H]` of slots `first_slot ..` (moved back where they would pass the end), and slots."""
    start = jnp.minimum(first_slot, heads.slots - size)
    return *heads.read(layer, first_row, rows, start, size), start + jnp.arange(size)


def _readable(values: Array, readable: Array) -> Array:
    """Zero `values [B, K, Z, H]` where `readable [B, Z]` is not set: a weight of 0 times NaN would be NaN."""
    return jnp.where(readable[:, None, :, None], values, 0)


def _attend(q: Array, k: Array, v: Array, mask: Array, spec: AttentionSpec, logit_shift: Array | None = None) -> Partial:
    """Softmax of scaled queries `[B, K, T, G, H]` over keys and values `[B, K, Z, H]`.

    mask broadcasts against the logits `[B, K, T, G, Z]`; logit_shift `[B, K, T, G]` is added to them.
    """
    rows, kv_heads, tokens, group, width = q.shape
    flat = q.reshape(rows, kv_heads, tokens * group, width)
    logits = jnp.einsum("bkmh,bkzh->bkmz", flat, k, preferred_element_type=jnp.float32).reshape(*q.shape[:-1], -1)
    if logit_shift is not None:
        logits = logits + logit_shift[..., None]
    if spec.softcap is not None:
        logits = spec.softcap * jnp.tanh(logits / spec.softcap)
    logits = jnp.where(mask, logits, -jnp.inf)
    row_max = logits.max(axis=-1)
    weights = jnp.exp(logits - jnp.where(jnp.isneginf(row_max), 0.0, row_max)[..., None])
    flat_weights = weights.reshape(*flat.shape[:-1], -1).astype(v.dtype)
    out = jnp.einsum("bkmz,bkzh->bkmh", flat_weights, v, preferred_element_type=jnp.float32)
    return Partial(out.reshape(q.shape), row_max, weights.sum(axis=-1))
