"""One layer's attention: project, normalise, rotate, read everything that may be seen, project back."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from psynth_jax.axes import Array, Hidden, KeysOrValues, PerRow
from psynth_jax.config import DecoderConfig
from psynth_jax.nn import over_mesh
from psynth_jax.nn.adapter import Lora, lora_delta
from psynth_jax.nn.layers import rms_norm
from psynth_jax.nn.ragged import RaggedRows
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention import Context, Implementation, branch_attention
from psynth_jax.ops.cached_heads import Placement


def attention(
    x: Hidden,
    weights: Mapping[str, Array],
    config: DecoderConfig,
    angles: tuple[Array, Array],
    context: Context | None,
    layer: Array | int,
    lora: Lora | None,
    strength: PerRow | None,
    implementation: Implementation,
    mesh: Mesh | None = None,
    placement: Placement | None = None,
    rows: RaggedRows | None = None,
    window: Array | None = None,
) -> tuple[Hidden, KeysOrValues, KeysOrValues]:
    """Return the attention output for `x [B, T, D]` (already normalised), and the new keys and values to be cached.

    Args:
      weights: this layer's parameters (letters as in `decoder.parameter_letters`, without L).
      angles: (cos, sin) `[B, T, 1, H/2]` of the tokens' positions.
      context: what is read besides the new tokens, all layers stacked; layer is the index into them.
      lora: this layer's factors; strength `[B]`: how much of it each row gets.
      mesh, placement: devices, and how the own cache is cut over them; keys and values come with the copies that it holds.
      rows: x is their list `[X, Z, D]`, and so is the output; keys and values come as rows.
      window: see `branch_attention`.
    """
    q, k, v = _projections(x, weights, config, lora, strength)
    if config.qk_norm:
        q, k = rms_norm(q, weights["q_norm"], config), rms_norm(k, weights["k_norm"], config)
    q, k = rope.rotate(q, *angles), rope.rotate(k, *angles)
    scale = config.query_scale or config.head_width**-0.5
    if rows is not None:
        q, k, v = (rows.to_rows(heads, mesh, placement) for heads in (q, k, v))
    if context is not None:
        # Else an answer would depend on where chunks end: later ones read what was stored.
        k, v = context.parts[0].heads.rounded(k, v)
    if mesh is None or placement is None:
        read = branch_attention(q, k, v, context, layer, scale, implementation, window)
    else:
        k, v = (jnp.repeat(heads, placement.copies, axis=2) for heads in (k, v))
        read = over_mesh.attend(mesh, placement, q, k, v, context, layer, scale, implementation, window)
    if rows is not None:
        read = rows.to_list(read, x.shape[1], mesh, placement)
    if weights["o"].ndim == 2:
        out = read.reshape(*x.shape[:2], -1) @ weights["o"]
    else:
        out = jnp.einsum("btnh,nhd->btd", read, weights["o"])
    out += lora_delta(lora, strength, "o", read)
    return out + weights["o_bias"] if config.o_bias else out, k, v


def _projections(
    x: Hidden, weights: Mapping[str, Array], config: DecoderConfig, lora: Lora | None, strength: PerRow | None
) -> list[Array]:
    """Return queries `[B, T, N, H]`, keys and values `[B, T, K, H]`, not rotated."""
    heads = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
    if "qkv" in weights:
        ends = np.cumsum([count * config.head_width for count in heads.values()])
        base = jnp.split(x @ weights["qkv"], ends[:-1], axis=-1)
    else:
        base = [jnp.tensordot(x, weights[target], axes=1) for target in heads]
    projected = []
    for (target, count), columns in zip(heads.items(), base, strict=True):
        made = columns.reshape(*x.shape[:2], count, config.head_width)
        made += lora_delta(lora, strength, target, x)
        projected.append(made + weights[f"{target}_bias"] if config.qkv_bias else made)
    return projected
