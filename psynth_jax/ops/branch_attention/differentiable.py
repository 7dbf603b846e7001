"""From a way forth and a way back to one differentiable operation, for kernels and the XLA form alike.

The way forth gives every query its output and its *level*, the log of the sum of exp(logit) over all that it saw.  With
weights p = exp(logit - level), gradients g of the output and h of the level, the way back needs one number more per query:

    d logit = p (g . dv - delta)        delta = sum_H g out - h

so whole and partial attention (whose level goes on into a merge) have the same one.  Caches are constants: nothing is
computed for them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.ops.branch_attention.types import Context


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """The arrays of a call of `api.branch_attention_partial`."""

    q: Array
    k: Array
    v: Array
    context: Context | None
    layer: Array
    window: Array | None
    with_new: Array | None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The two ways through an implementation.

    forward(inputs, scale, dtype, **options) returns out `[B, T, N, H]` in dtype and level `[B, T, N]` float32, -inf where
    nothing was seen.  backward(inputs, scale, level, gradient, delta, **options) returns the gradients of q, k, v and the
    mapper's scalars (None without a context).  options: static, those of the call.
    """

    forward: Callable[..., tuple[Array, Array]]
    backward: Callable[..., tuple[Array, Array, Array, Array | None]]


def attend(
    kernel: Kernel, inputs: Inputs, scale: float, dtype: jax.typing.DTypeLike, **options: Hashable
) -> tuple[Array, Array]:
    """Run an implementation; out and level are differentiable in q, k, v and the mapper's scalars."""
    scalars = None if inputs.context is None else inputs.context.scalars
    without = None if inputs.context is None else dataclasses.replace(inputs.context, scalars=None)
    constant = without, jnp.asarray(inputs.layer, jnp.int32), inputs.window, inputs.with_new
    static = _Static(kernel, scale, jnp.dtype(dtype), tuple(sorted(options.items())))
    return _attend(static, inputs.q, inputs.k, inputs.v, scalars, constant)


@dataclasses.dataclass(frozen=True)
class _Static:
    kernel: Kernel
    scale: float
    dtype: Any
    options: tuple[tuple[str, Hashable], ...]


def _inputs(q: Array, k: Array, v: Array, scalars: Array | None, constant: Any) -> Inputs:
    without, layer, window, with_new = constant
    context = None if without is None else dataclasses.replace(without, scalars=scalars)
    return Inputs(q, k, v, context, layer, window, with_new)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, q: Array, k: Array, v: Array, scalars: Array | None, constant: Any) -> tuple[Array, Array]:
    inputs = _inputs(q, k, v, scalars, constant)
    return static.kernel.forward(inputs, static.scale, static.dtype, **dict(static.options))


def _forward(static: _Static, *arguments: Any) -> tuple[Any, Any]:
    out, level = _attend(static, *arguments)
    return (out, level), (arguments, out, level)


def _backward(static: _Static, saved: Any, gradients: Any) -> tuple[Any, ...]:
    arguments, out, level = saved
    of_out, of_level = gradients
    delta = (of_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1) - of_level
    found = static.kernel.backward(_inputs(*arguments), static.scale, level, of_out, delta, **dict(static.options))
    return *found, None


_attend.defvjp(_forward, _backward)
