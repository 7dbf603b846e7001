"""A mixture of experts in the place of a layer's MLP (Qwen3-MoE): each token goes to few of many small gated MLPs.

    router    softmax over all experts in float32, the best k of each token, their weights made to sum to 1 or not
    experts   tokens sorted by expert; three matrix products with ragged groups; back to their places, weighted and summed

On a mesh every device computes its own experts' tokens (or its part of every expert's width, where `tensor` does not divide
the experts), and one sum over `tensor` brings them together, as for an MLP that is not a mixture.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from psynth_jax.axes import Array, Hidden, PerRow
from psynth_jax.config import DecoderConfig
from psynth_jax.nn.adapter import Lora
from psynth_jax.nn.layers import gated_mlp
from psynth_jax.sharding import FSDP, TENSOR


def route(logits: Array, config: DecoderConfig) -> tuple[Array, Array]:
    """Return weights and numbers of each token's experts, `[tokens, k]`, of router logits `[tokens, E]`."""
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, chosen = jax.lax.top_k(probabilities, config.experts_per_token)
    if config.norm_expert_weights:
        weights /= weights.sum(axis=-1, keepdims=True)
    return weights, chosen


def feed_forward(
    x: Hidden,
    layer: Mapping[str, Array],
    config: DecoderConfig,
    mesh: Mesh | None,
    row_axes: tuple[str, ...],
    gathered: bool,
    lora: Lora | None = None,
    strength: PerRow | None = None,
) -> Hidden:
    """Run a layer's MLP or its mixture, which no LoRA changes; arguments as for `gated_mlp` and `expert_mlp`."""
    if config.experts:
        return expert_mlp(x, layer, config, mesh, row_axes, gathered)
    return gated_mlp(x, layer, config, lora, strength)


def expert_mlp(
    x: Hidden,
    layer: Mapping[str, Array],
    config: DecoderConfig,
    mesh: Mesh | None = None,
    row_axes: tuple[str, ...] = (),
    gathered: bool = False,
) -> Hidden:
    """Run the mixture of one layer on `x [B, T, D]`.

    Args:
      layer: router `[D, E]`, gate and up `[E, D, F]`, down `[E, F, D]`.
      row_axes: mesh axes over which rows of x are cut.
      gathered: the weights have come whole along fsdp; else D of x and of the weights is cut over it.
    """
    weights = (layer["router"], layer["gate"], layer["up"], layer["down"])
    if mesh is None:
        return _run(x, *weights, config)
    width = None if gathered else FSDP
    rows = P(row_axes or None, None, width)
    by_expert = config.experts % mesh.shape[TENSOR] == 0
    expert, inner = (TENSOR, None) if by_expert else (None, TENSOR)

    def local(x: Array, router: Array, gate: Array, up: Array, down: Array) -> Array:
        first = jax.lax.axis_index(TENSOR) * gate.shape[0] if by_expert else 0
        return jax.lax.psum(_run(x, router, gate, up, down, config, first, width), TENSOR)

    specs = (rows, P(width, None), P(expert, width, inner), P(expert, width, inner), P(expert, inner, width))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(x, *weights)


def _run(
    x: Hidden,
    router: Array,
    gate: Array,
    up: Array,
    down: Array,
    config: DecoderConfig,
    first: Array | int = 0,
    width: str | None = None,
) -> Hidden:
    """Add up what the experts from number `first` on, as many as `gate` has, give; D is cut over the mesh axis `width`."""

    def whole(partial: Array) -> Array:
        return partial if width is None else jax.lax.psum(partial, width)

    flat, held = x.reshape(-1, x.shape[-1]), gate.shape[0]
    weights, chosen = route(whole(flat @ router), config)
    count, per_token = chosen.shape
    mine = (chosen.reshape(-1) >= first) & (chosen.reshape(-1) < first + held)
    number = jnp.where(mine, chosen.reshape(-1) - first, held)  # tokens of others' experts come last, and belong to no group
    order = jnp.argsort(number)
    sizes = jnp.bincount(number, length=held + 1)[:held].astype(jnp.int32)
    grouped = (jnp.arange(len(order)) < sizes.sum())[:, None]

    def product(rows: Array, matrices: Array) -> Array:
        # Rows behind the last group are whatever the device left there, forwards and backwards: replaced, not times 0.
        return jnp.where(grouped, jax.lax.ragged_dot(jnp.where(grouped, rows, 0), matrices, sizes), 0)

    sorted_rows = flat[order // per_token]
    hidden = jax.nn.silu(whole(product(sorted_rows, gate))) * whole(product(sorted_rows, up))
    share = jnp.where(mine, weights.reshape(-1), 0.0).astype(x.dtype)[:, None]
    back = product(hidden, down)[jnp.argsort(order)] * share
    return back.reshape(count, per_token, -1).sum(axis=1).reshape(x.shape)
