"""Models in which some layers are local: they see a window, and have rotary frequencies of their own.

    layer   0      1      2      3      4      5       6      ...     Gemma 3: every 6th sees everything
            local  local  local  local  local  global  local

Layers are scanned, so what differs between the two kinds is chosen by the layer's number.  Branches and shared prompts are
seen whole by every layer: whoever reads them stays within the window (`DecoderConfig.context_positions`), where a local
layer sees what a global one does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.config import DecoderConfig, LocalLayers, Rope
from psynth_jax.ops.branch_attention import Context

Angles = tuple[Array, Array]


def by_kind(config: DecoderConfig, angles: Callable[[Rope], Angles]) -> Angles:
    """Return the (cos, sin) of the model's layers; with local layers, `[2, ...]`: of the global, then of the local ones."""
    everywhere = angles(config.rope)
    if config.local is None:
        return everywhere
    cos, sin = (jnp.stack(pair) for pair in zip(everywhere, angles(config.local.rope), strict=True))
    return cos, sin


def of_layer(config: DecoderConfig, angles: Angles, layer: Array) -> Angles:
    """Return those of one layer of what `by_kind` returned."""
    if config.local is None:
        return angles
    kind = _is_local(config.local, layer).astype(jnp.int32)
    return angles[0][kind], angles[1][kind]


def context_of_layer(config: DecoderConfig, context: Context | None, layer: Array) -> Context | None:
    """Return what one layer reads of a context whose cos and sin are as `by_kind` has them."""
    if config.local is None or context is None:
        return context
    cos, sin = of_layer(config, (context.cos, context.sin), layer)
    return dataclasses.replace(context, cos=cos, sin=sin)


def window_of(config: DecoderConfig, slots: int, layer: Array) -> Array | None:
    """Return the window of one layer as `ops.branch_attention` takes it; None where a row of `slots` fits into it."""
    if config.local is None or slots <= config.local.window:
        return None
    return jnp.where(_is_local(config.local, layer), config.local.window, slots)


def _is_local(local: LocalLayers, layer: Array) -> Array:
    return (layer + 1) % local.global_every != 0
