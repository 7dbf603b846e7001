"""The backward pass through the folded form: gradients of the queries, the new keys and values, and the mapper's scalars.

The same blocks once more, weights recomputed from the saved level.  For a run with turned query
r = c aK R(shift) q, logits x = r.k + c bK sum(q), weights p = exp(x - level) and output gradient g:

    D the call's delta              dw = aV g.v + bV sum(g)         dx = p (dw - D)
    dr = sum_s dx k                 dq = c aK R^T dr + c bK sum_s dx
    dk = c sum dx q                 dv = sum p g                              (of the new tokens)
    daK = c (R q).dr     dbK = c sum(q) sum_s dx     daV = sum_s p g.v     dbV = sum_s p sum(g)

the last two lines summed over queries.  Branch caches are constants: nothing is computed for them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention import xla_blocks
from psynth_jax.ops.branch_attention.differentiable import Inputs
from psynth_jax.ops.branch_attention.types import Context
from psynth_jax.ops.branch_attention.xla_blocks import Run, by_head, by_token, causal, query_blocks


class _Queries(NamedTuple):
    """A block of one row's queries with what their gradient needs: q, gradient `[1, K, M, H]`; delta, level `[1, K, M]`."""

    q: Array
    gradient: Array
    delta: Array
    level: Array


class _Sums(NamedTuple):
    """Sums over slots, per query: dx k `[1, K, M, H]`; dx, p and p g.v `[1, K, M]`."""

    of_keys: Array
    of_logits: Array
    of_weights: Array
    of_values: Array


def backward(
    inputs: Inputs, scale: float, level: Array, gradient: Array, delta: Array
) -> tuple[Array, Array, Array, Array | None]:
    """Return the gradients of q, k, v and scalars; see `differentiable.Kernel`."""
    q, k, v, context, layer = inputs.q, inputs.k, inputs.v, inputs.context, inputs.layer
    window, with_new = inputs.window, inputs.with_new
    batch, tokens = q.shape[:2]
    group = q.shape[2] // k.shape[2]
    queries = _Queries(*(by_head(x, group) for x in (q, gradient.astype(q.dtype), delta, level)))

    def of_row(item: tuple[Array, Any]) -> tuple[Array, Array, Array, Array | None]:
        row, (new_k, new_v, mine) = item
        new_k, new_v, mine = jax.tree.map(lambda x: x[None], (new_k, new_v, mine))
        dk, dv = jnp.zeros(new_k.shape, jnp.float32), jnp.zeros(new_v.shape, jnp.float32)
        dq, of_scalars = [], None
        if context is not None:
            of_scalars = jnp.zeros(context.scalars.shape[2:], jnp.float32)
        for first, end in query_blocks(tokens, xla_blocks.QUERY_BLOCK):
            block = _Queries(*(x[:, :, first * group : end * group] for x in mine))
            mask = causal(first, end, group, window, with_new, range(end))
            of_queries, block_k, block_v = _new(block, new_k[:, :, :end], new_v[:, :, :end], mask, scale)
            dk, dv = dk.at[:, :, :end].add(block_k), dv.at[:, :, :end].add(block_v)
            if context is not None:
                token = jnp.repeat(jnp.arange(first, end), group)  # [M]
                found = of_queries, of_scalars
                of_queries, of_scalars = _cached(block, row, token, context, layer, scale, window, found)
            dq.append(of_queries)
        return jnp.concatenate(dq, axis=2)[0], dk[0], dv[0], of_scalars

    rows = jnp.arange(batch), (by_head(k), by_head(v), queries)
    dq, dk, dv, of_scalars = jax.lax.map(of_row, rows)
    if context is not None:  # [B, W, 4] of one layer
        of_scalars = of_scalars.astype(context.scalars.dtype)
        of_scalars = jnp.zeros_like(context.scalars).at[layer].set(of_scalars)
    dq, dk, dv = (by_token(x, batch, tokens).astype(like.dtype) for x, like in ((dq, q), (dk, k), (dv, v)))
    return dq, dk, dv, of_scalars


def _new(block: _Queries, k: Array, v: Array, mask: Array, scale: float) -> tuple[Array, Array, Array]:
    """Return the gradients of the queries, of the new keys and of the new values `[1, K, Z, H]` that they may see."""
    scaled = scale * block.q
    weights, of_logit, _ = _through_softmax(block, scaled, k, v, mask)
    dk = jnp.einsum("bkmz,bkmh->bkzh", of_logit.astype(k.dtype), scaled, preferred_element_type=jnp.float32)
    dv = jnp.einsum("bkmz,bkmh->bkzh", weights.astype(v.dtype), block.gradient, preferred_element_type=jnp.float32)
    return scale * _times_keys(of_logit, k), dk, dv


def _cached(
    block: _Queries,
    row: Array,
    token: Array,
    context: Context,
    layer: Array,
    scale: float,
    window: Array | None,
    found: tuple[Array, Array],
) -> tuple[Array, Array]:
    """Add what goes through the runs of batch row `row` to `found`: of queries, and scalars `[W, 4]`."""
    total = block.q.astype(jnp.float32).sum(axis=-1)
    of_output = block.gradient.astype(jnp.float32).sum(axis=-1)

    def over_run(run: Run, found: tuple[Array, Array]) -> tuple[Array, Array]:
        key_scale, key_bias, value_scale, value_bias = run.scalars
        upright = scale * rope.rotate(block.q.astype(jnp.float32), run.cos, run.sin)
        turned = (upright * key_scale).astype(block.q.dtype)
        logit_shift = scale * key_bias * total
        shifted = block._replace(delta=block.delta - value_bias * of_output)

        def visit(sums: _Sums, k: Array, v: Array, seen: Array) -> _Sums:
            k = _readable(k, seen.any(axis=2, keepdims=True))
            weights, of_logit, through_values = _through_softmax(shifted, turned, k, v, seen, logit_shift, value_scale)
            here = _Sums(
                _times_keys(of_logit, k),
                of_logit.sum(axis=-1),
                weights.sum(axis=-1),
                (weights * through_values).sum(axis=-1),
            )
            return jax.tree.map(jnp.add, sums, here)

        zero = jnp.zeros(total.shape, jnp.float32)
        nothing = _Sums(jnp.zeros(block.q.shape, jnp.float32), zero, zero, zero)
        sums = xla_blocks.over_blocks(visit, nothing, run)
        dq, of_scalars = found
        of_turned = key_scale * rope.rotate(sums.of_keys, run.cos, -run.sin)
        dq += scale * (of_turned + key_bias * sums.of_logits[..., None])
        four = (
            (upright * sums.of_keys).sum(),
            (scale * total * sums.of_logits).sum(),
            sums.of_values.sum(),
            (of_output * sums.of_weights).sum(),
        )
        return dq, of_scalars.at[run.branch].add(jnp.stack(four))

    return xla_blocks.over_runs(over_run, found, context, layer, row, token, window)


def _through_softmax(
    block: _Queries,
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    logit_shift: Array | None = None,
    value_scale: Array | float = 1.0,
) -> tuple[Array, Array, Array]:
    """Return p, dx and g.v, each `[1, K, M, Z]`, of scaled and turned queries q."""
    logits = xla_blocks.logits_of(q, k, logit_shift)
    level = jnp.where(jnp.isneginf(block.level), 0.0, block.level)
    weights = jnp.where(mask, jnp.exp(logits - level[..., None]), 0.0)
    through_values = jnp.einsum("bkmh,bkzh->bkmz", block.gradient, v, preferred_element_type=jnp.float32)
    of_logit = weights * (value_scale * through_values - block.delta[..., None])
    return weights, of_logit, through_values


def _times_keys(of_logit: Array, k: Array) -> Array:
    return jnp.einsum("bkmz,bkzh->bkmh", of_logit.astype(k.dtype), k, preferred_element_type=jnp.float32)


def _readable(k: Array, inside: Array) -> Array:
    """Zero keys `[1, K, Z, H]` where `inside [1, 1, 1, Z]` is not set: here NaN would pass through a product with 0."""
    return jnp.where(inside.swapaxes(-1, -2), k, 0)
