"""The folded form in plain XLA: cached slots are read where they lie, once per block of queries.

    logit   c q . (aK R(-shift) k + bK)   =   aK c (R(shift) q) . k  +  c bK sum(q)
    output  sum p (aV v + bV)             =   aV sum p v             +  bV sum p

Re-encoding turns the *query* once per branch; the mapper is a scale and a shift of logits and
accumulator.  Blocks of queries meet blocks of slots under a running softmax, so no array grows with
T times the cached slots, and the number of blocks visited is the number that is filled, not the
capacity.  One token a row (T = 1) takes the list of `xla_decode.py`, several go row by row.
`xla_vjp.py` is the backward pass over the same blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention import differentiable, xla_blocks, xla_decode, xla_vjp
from psynth_jax.ops.branch_attention.differentiable import Inputs, Kernel
from psynth_jax.ops.branch_attention.types import Context
from psynth_jax.ops.branch_attention.xla_blocks import (
    Run,
    attend_block,
    by_head,
    by_token,
    causal,
    query_blocks,
)
from psynth_jax.ops.partial import Partial, empty, finalize, level, merge

# Query tokens that meet the new keys at once: half of the logits of its last 128 keys are masked.
CAUSAL_BLOCK = 128


def attend(
    q: Array,
    k: Array,
    v: Array,
    context: Context | None,
    layer: Array | int,
    scale: float,
    with_new: Array | None,
    dtype: jax.typing.DTypeLike,
    window: Array | None = None,
) -> tuple[Array, Array]:
    """Return out `[B, T, N, H]` in dtype and level `[B, T, N]`; see `api.branch_attention_partial`.

    Differentiable in q, k, v and the mapper's scalars; caches are constants.
    """
    inputs = jax.tree.map(jnp.asarray, Inputs(q, k, v, context, layer, window, with_new))
    return differentiable.attend(Kernel(_forward, xla_vjp.backward), inputs, scale, dtype)


def _forward(inputs: Inputs, scale: float, dtype: Any) -> tuple[Array, Array]:
    q, k, v, context, layer = inputs.q, inputs.k, inputs.v, inputs.context, inputs.layer
    batch, tokens = q.shape[:2]
    group = q.shape[2] // k.shape[2]
    grouped = by_head(q, group)
    if tokens == 1:
        new = _own(grouped, by_head(k), by_head(v), scale, inputs.with_new)
    else:
        new = _new(grouped, by_head(k), by_head(v), group, scale, inputs.window, inputs.with_new)
    if context is None:
        seen = new
    elif tokens == 1:
        seen = xla_decode.attend(grouped, new, context, layer, scale, inputs.window)
    else:
        blocks = []
        for first, end in query_blocks(tokens, xla_blocks.QUERY_BLOCK):
            token = jnp.repeat(jnp.arange(first, end), group)  # [M]
            cached = functools.partial(
                _cached,
                token=token,
                context=context,
                layer=layer,
                scale=scale,
                window=inputs.window,
            )
            blocks.append(_over_rows(cached, grouped[:, :, first * group : end * group]))
        read = jax.tree.map(lambda *found: jnp.concatenate(found, axis=2), *blocks)
        seen = merge(new, read)
    out = finalize(seen).astype(dtype)
    levels = level(seen.row_max, seen.row_sum)
    return by_token(out, batch, tokens), by_token(levels, batch, tokens)


def _over_rows(function: Callable[[Array, Array], Partial], grouped: Array) -> Partial:
    """Stack `function(grouped[b:b+1], b)` over b, dropping the inner row axis."""
    if grouped.shape[0] == 1:
        return function(grouped, jnp.int32(0))
    rows = grouped, jnp.arange(grouped.shape[0])
    stacked = jax.lax.map(lambda item: function(item[0][None], item[1]), rows)
    return jax.tree.map(lambda x: x[:, 0], stacked)


def _own(q: Array, k: Array, v: Array, scale: float, with_new: Array | None) -> Partial:
    """Attention of `q [B, K, G, H]`, one new token, to its own `k, v [B, K, 1, H]`.

    Not as a matrix product, which would be a kernel of its own.
    """
    logits = ((scale * q).astype(jnp.float32) * k.astype(jnp.float32)).sum(axis=-1)
    weights = jnp.exp(logits - logits)  # 1; NaN where a logit is not finite, -inf too
    out = weights[..., None] * v.astype(jnp.float32)
    if with_new is None:
        return Partial(out, logits, weights)
    nothing = empty(q.shape[:-1], q.shape[-1])
    return jax.tree.map(lambda x, none: jnp.where(with_new, x, none), Partial(out, logits, weights), nothing)


def _new(
    q: Array,
    k: Array,
    v: Array,
    group: int,
    scale: float,
    window: Array | None,
    with_new: Array | None,
) -> Partial:
    """Causal attention of `q [B, K, M, H]` to the new keys `[B, K, T, H]`, in blocks of tokens."""
    blocks = []
    for first, end in query_blocks(k.shape[2], CAUSAL_BLOCK):
        scaled = scale * q[:, :, first * group : end * group]
        mask = causal(first, end, group, window, with_new, range(first, end))
        seen = attend_block(scaled, k[:, :, first:end], v[:, :, first:end], mask)
        if first:
            before = with_new
            if window is not None:
                before = causal(first, end, group, window, with_new, range(first))
            seen = merge(seen, attend_block(scaled, k[:, :, :first], v[:, :, :first], before))
        blocks.append(seen)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *blocks)


def _cached(
    q: Array,
    row: Array,
    token: Array,
    context: Context,
    layer: Array,
    scale: float,
    window: Array | None,
) -> Partial:
    """Attention of `q [1, K, M, H]`, which belongs to batch row `row`, to all runs of that row."""
    total = q.astype(jnp.float32).sum(axis=-1)

    def over_run(run: Run, seen: Partial) -> Partial:
        key_scale, key_bias, value_scale, value_bias = run.scalars
        turned = (rope.rotate(q, run.cos, run.sin) * (scale * key_scale)).astype(q.dtype)
        logit_shift = scale * key_bias * total

        def visit(seen: Partial, k: Array, v: Array, inside: Array | None) -> Partial:
            here = attend_block(turned, k, v, inside, logit_shift)
            out = value_scale * here.out + value_bias * here.row_sum[..., None]
            return merge(seen, Partial(out, here.row_max, here.row_sum))

        return xla_blocks.over_blocks(visit, seen, run, q.shape[2])

    nothing = empty(q.shape[:-1], q.shape[-1])
    return xla_blocks.over_runs(over_run, nothing, context, layer, row, token, window)
