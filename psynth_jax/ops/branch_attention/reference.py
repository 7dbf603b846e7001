"""The oracle: does to the caches what the method's definition says, with no regard for memory or speed.

Gathers every segment, turns its keys back by the branch's shift, maps keys and values, puts branches and own tokens side by
side and takes one softmax.  float32 (float64 for float64 input).  Differentiable in everything.
"""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention.types import Context, ContextPart, OwnCache


def materialise(part: ContextPart, context: Context, layer: Array | int) -> tuple[Array, Array, Array]:
    """Return re-encoded, mapped keys and values `[B, C, S, K, H]` of a part, and which slots count, `[B, C, S]`."""
    segments = part.segments
    slots = jnp.arange(part.heads.slots)
    k, v = part.heads.read(layer, 0, part.heads.rows, 0, part.heads.slots)
    seen = (slots >= segments.first[..., None]) & (slots < (segments.first + segments.length)[..., None])
    batch = jnp.arange(segments.row.shape[0])[:, None]

    def gathered(heads: Array) -> Array:
        rows = jnp.swapaxes(heads, 1, 2)[segments.row]  # [B, C, S, K, H]
        return jnp.where(seen[..., None, None], rows, 0)

    def of_branch(values: Array) -> Array:  # [B, W, X] -> [B, C, 1, 1, X]
        return values[batch, segments.branch][:, :, None, None, :]

    key_scale, key_bias, value_scale, value_bias = jnp.split(of_branch(context.scalars[layer]), 4, axis=-1)
    keys = rope.rotate(gathered(k).astype(jnp.float32), of_branch(context.cos), -of_branch(context.sin))
    return key_scale * keys + key_bias, value_scale * gathered(v) + value_bias, seen


def _near(behind: Array, window: Array | None) -> Array:
    return jnp.full(behind.shape, True) if window is None else behind < window


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
    """Return out `[B, T, N, H]` in dtype and level `[B, T, N]`; see `api.branch_attention_partial`."""
    batch, tokens, heads, width = q.shape
    kv_heads = k.shape[2]
    keys, values = [k], [v]
    token = jnp.arange(tokens)
    behind = token[:, None] - token  # how far a key is behind a query, [T, T] and [B, T, S]
    masks = [jnp.broadcast_to((behind >= 0) & _near(behind, window), (batch, tokens, tokens))]
    if own is not None:
        filled = jnp.arange(own.heads.slots) < own.start[:, None]  # [B, S]
        own_k, own_v = own.heads.read(layer, 0, batch, 0, own.heads.slots)
        keys.append(jnp.where(filled[..., None, None], jnp.swapaxes(own_k, 1, 2), 0))
        values.append(jnp.where(filled[..., None, None], jnp.swapaxes(own_v, 1, 2), 0))
        behind = (own.start[:, None] + token)[..., None] - jnp.arange(own.heads.slots)
        masks.append(filled[:, None] & _near(behind, window))
    if with_own is not None:
        masks = [mask & with_own for mask in masks]
    for part in () if context is None else context.parts:
        part_k, part_v, seen = materialise(part, cast("Context", context), layer)
        keys.append(part_k.reshape(batch, -1, kv_heads, width))
        values.append(part_v.reshape(batch, -1, kv_heads, width))
        masks.append(jnp.broadcast_to(seen.reshape(batch, 1, -1), (batch, tokens, seen[0].size)))

    all_keys, all_values = jnp.concatenate(keys, axis=1), jnp.concatenate(values, axis=1)
    grouped = q.astype(jnp.promote_types(q.dtype, jnp.float32)).reshape(batch, tokens, kv_heads, heads // kv_heads, width)
    logits = scale * jnp.einsum("btkgh,bskh->bkgts", grouped, all_keys, precision="highest")
    logits = jnp.where(jnp.concatenate(masks, axis=2)[:, None, None], logits, -jnp.inf)
    level = jax.nn.logsumexp(logits, axis=-1)  # [B, K, G, T]
    weights = jnp.exp(logits - jnp.where(jnp.isneginf(level), 0.0, level)[..., None])
    out = jnp.einsum("bkgts,bskh->btkgh", weights, all_values, precision="highest")
    return out.reshape(q.shape).astype(dtype), jnp.moveaxis(level, 3, 1).reshape(batch, tokens, heads)
