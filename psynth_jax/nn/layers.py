"""The small pieces of a decoder layer: norm, gated MLP, rotary frequencies."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array, Hidden, HostArray, PerRow
from psynth_jax.config import DecoderConfig, LinearRope, Llama3Rope, Rope, YarnRope
from psynth_jax.nn.adapter import Lora, lora_delta
from psynth_jax.ops import rope as rope_op


def rms_norm(x: Array, weight: Array, config: DecoderConfig) -> Array:
    """Normalise the last axis by its root mean square, in float32, then scale by `weight`."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_eps)
    if config.norms_from_one:  # Gemma rounds after scaling, the others before
        return (normed * (1 + weight.astype(jnp.float32))).astype(x.dtype)
    return normed.astype(x.dtype) * weight


def gated_mlp(
    x: Hidden, layer: Mapping[str, Array], config: DecoderConfig, lora: Lora | None, strength: PerRow | None
) -> Hidden:
    """Return `(act(x gate) * (x up)) down` of `x [B, T, D]`; gate, up `[D, F]`, or gate_up `[D, 2 F]`; down `[F, D]`.

    lora: this layer's factors; strength `[B]` how much of it each row gets, as in `lora_delta`.
    """
    if "gate_up" in layer:
        gate, up = jnp.split(x @ layer["gate_up"], 2, axis=-1)
    else:
        gate, up = x @ layer["gate"], x @ layer["up"]
    gate += lora_delta(lora, strength, "gate", x)
    up += lora_delta(lora, strength, "up", x)
    hidden = up * (jax.nn.silu(gate) if config.activation == "silu" else jax.nn.gelu(gate, approximate=True))
    return hidden @ layer["down"] + lora_delta(lora, strength, "down", hidden)


def rope_frequencies(rope: Rope, head_width: int) -> HostArray:
    """Return the radians per position of every plane, `[H/2]` float32."""
    plain = rope_op.plain_frequencies(rope.theta, head_width)
    if isinstance(rope, LinearRope):
        return (plain / rope.factor).astype(plain.dtype)
    if isinstance(rope, Llama3Rope):
        return rope_op.llama3_frequencies(plain, **rope.model_dump(exclude={"kind", "theta"}))
    if isinstance(rope, YarnRope):
        return rope_op.yarn_frequencies(plain, **rope.model_dump(exclude={"kind", "attention_factor"}))
    return plain


def token_angles(rope: Rope, head_width: int, positions: Array) -> tuple[Array, Array]:
    """Return (cos, sin) `[B, T, 1, H/2]` that rotate queries and keys at `positions [B, T]`.

    A YaRN attention factor is part of them, once; the rotation of branches (`branch_angles`) is pure, because cached keys
    already carry the factor.
    """
    cos, sin = rope_op.angles(positions, rope_frequencies(rope, head_width))
    factor = rope.attention_factor if isinstance(rope, YarnRope) else 1.0
    return factor * cos[:, :, None], factor * sin[:, :, None]


def branch_angles(rope: Rope, head_width: int, shift: Array) -> tuple[Array, Array]:
    """Return (cos, sin) `[B, W, H/2]` of the rotation by `shift [B, W]` positions."""
    return rope_op.angles(shift, rope_frequencies(rope, head_width))
