"""Models in which some layers are local: they see a window, and have rotary frequencies of their own.

    layer   0      1      2      3      4      5       6      ...     Gemma 3: every 6th sees everything
            local  local  local  local  local  global  local

In a local layer a query at position p sees what stands after p - window: of the new tokens, of its
own cache, and of branches, at the positions that they are re-encoded to.
Where layers are scanned, what differs between the two kinds is chosen by the layer's number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.config import DecoderConfig, LocalLayers, Rope
from psynth_jax.ops import branch_attention
from psynth_jax.ops.branch_attention import Context

FAR = 1 << 24  # a window that no text fills; times a group of heads it is still an int32
Angles = tuple[Array, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    """Which layer it is.

    is_local: whether it sees a window; None where that is not known when the call is traced.
    """

    number: Array | int
    is_local: bool | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def known(cls, config: DecoderConfig, number: int) -> Layer:
        """Return a layer whose kind is known."""
        return cls(number, config.local is not None and _is_local(config.local, number))


def by_kind(config: DecoderConfig, angles: Callable[[Rope], Angles]) -> Angles:
    """Return the (cos, sin) of the model's layers; with local layers, `[2, ...]`: of the global, then of the local ones."""
    everywhere = angles(config.rope)
    if config.local is None:
        return everywhere
    cos, sin = (jnp.stack(pair) for pair in zip(everywhere, angles(config.local.rope), strict=True))
    return cos, sin


def of_layer(config: DecoderConfig, angles: Angles, layer: Layer) -> Angles:
    """Return those of one layer of what `by_kind` returned."""
    if config.local is None:
        return angles
    kind = _kind(config.local, layer)
    return angles[0][kind], angles[1][kind]


def lay_out(config: DecoderConfig, context: Context) -> Context:
    """Lay out what a step of one token a row reads; with local layers, blocks `[2, X]` as `by_kind`."""
    everything = branch_attention.lay_out(context)
    if config.local is None:
        return everything
    near = branch_attention.lay_out(context, config.local.window)
    both = jax.tree.map(lambda *pair: jnp.stack(pair), everything.blocks, near.blocks)
    return dataclasses.replace(context, blocks=both)


def context_of_layer(config: DecoderConfig, context: Context | None, layer: Layer) -> Context | None:
    """Return what one layer reads of a context whose cos, sin and blocks come by kind."""
    if config.local is None or context is None:
        return context
    kind = _kind(config.local, layer)
    cos, sin, blocks = jax.tree.map(lambda x: x[kind], (context.cos, context.sin, context.blocks))
    return dataclasses.replace(context, cos=cos, sin=sin, blocks=blocks)


def window_of(config: DecoderConfig, slots: int | None, layer: Layer) -> Array | None:
    """Return the window of one layer as `ops.branch_attention` takes it; None where it hides nothing.

    slots: a bound of how far a query is from what it reads; None: there is none.
    """
    if config.local is None or (slots is not None and slots <= config.local.window):
        return None
    kind = _kind(config.local, layer)
    if layer.is_local is None:
        return jnp.where(kind, config.local.window, FAR)
    return jnp.int32(config.local.window) if layer.is_local else None


def _kind(local: LocalLayers, layer: Layer) -> Array | int:
    """Return 1 for a local layer, and 0 for one that sees everything."""
    if layer.is_local is None:
        return _is_local(local, layer.number).astype(jnp.int32)
    return int(layer.is_local)


def _is_local(local: LocalLayers, number: Any) -> Any:
    return (number + 1) % local.global_every != 0
