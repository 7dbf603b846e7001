"""The oracle: does to the caches what the method's definition says, however slow.

Gathers every run, turns its keys back by the branch's shift, maps keys and values, puts them beside
the new tokens and takes one softmax.  float32 (float64 for float64 input).  Differentiable in
everything.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention.types import Context, ContextPart


def materialise(
    part: ContextPart,
    context: Context,
    layer: Array | int,
) -> tuple[Array, Array, Array]:
    """Return re-encoded, mapped keys and values `[B, C, S, K, H]`, and which count `[B, C, S]`."""
    runs = part.runs.present()
    slots = jnp.arange(part.heads.slots)
    k, v = part.heads.read(layer, 0, part.heads.rows, 0, part.heads.slots)
    inside = (slots >= runs.first[..., None]) & (slots < (runs.first + runs.length)[..., None])
    batch = jnp.arange(runs.row.shape[0])[:, None]

    def gathered(heads: Array) -> Array:
        rows = jnp.swapaxes(heads, 1, 2)[runs.row]  # [B, C, S, K, H]
        return jnp.where(inside[..., None, None], rows, 0)

    def of_branch(values: Array) -> Array:  # [B, W, X] -> [B, C, 1, 1, X]
        return values[batch, runs.branch][:, :, None, None, :]

    scalars = of_branch(context.scalars[layer])
    key_scale, key_bias, value_scale, value_bias = jnp.split(scalars, 4, axis=-1)
    cos, sin = of_branch(context.cos), of_branch(context.sin)
    keys = rope.rotate(gathered(k).astype(jnp.float32), cos, -sin)
    return key_scale * keys + key_bias, value_scale * gathered(v) + value_bias, inside


def _positions(part: ContextPart) -> Array:
    """Return the position of every slot as the query sees it, `[B, C, S]`."""
    before = (part.runs.position - part.runs.first)[..., None]
    return before + jnp.arange(part.heads.slots)


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
    """Return out `[B, T, N, H]` in dtype and level `[B, T, N]`; see `api`."""
    batch, tokens, heads, width = q.shape
    kv_heads = k.shape[2]
    token = jnp.arange(tokens)
    behind = token[:, None] - token  # how far a key is behind a query
    causal = behind >= 0
    if window is not None:
        causal &= behind < window
    if with_new is not None:
        causal &= with_new
    keys, values = [k], [v]
    masks = [jnp.broadcast_to(causal, (batch, tokens, tokens))]
    if context is not None:
        at = context.query_position[:, None] + token  # [B, T]
        for part in context.parts:
            part_k, part_v, inside = materialise(part, context, layer)
            seen = jnp.broadcast_to(inside[:, None], (batch, tokens, *inside.shape[1:]))
            if window is not None:
                seen &= at[..., None, None] - _positions(part)[:, None] < window  # [B, T, C, S]
            keys.append(part_k.reshape(batch, -1, kv_heads, width))
            values.append(part_v.reshape(batch, -1, kv_heads, width))
            masks.append(seen.reshape(batch, tokens, -1))

    all_keys, all_values = jnp.concatenate(keys, axis=1), jnp.concatenate(values, axis=1)
    wide = q.astype(jnp.promote_types(q.dtype, jnp.float32))
    grouped = wide.reshape(batch, tokens, kv_heads, heads // kv_heads, width)
    logits = scale * jnp.einsum("btkgh,bskh->bkgts", grouped, all_keys, precision="highest")
    logits = jnp.where(jnp.concatenate(masks, axis=2)[:, None, None], logits, -jnp.inf)
    level = jax.nn.logsumexp(logits, axis=-1)  # [B, K, G, T]
    weights = jnp.exp(logits - jnp.where(jnp.isneginf(level), 0.0, level)[..., None])
    out = jnp.einsum("bkgts,bskh->btkgh", weights, all_values, precision="highest")
    level = jnp.moveaxis(level, 3, 1).reshape(batch, tokens, heads)
    return out.reshape(q.shape).astype(dtype), level
