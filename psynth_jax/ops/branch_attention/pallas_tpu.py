"""The folded form as one Pallas kernel for TPU: new tokens and every run in a single pass.

At the first step of a run the query block is turned by the branch's shift; the mapper's scalars meet the logits and the
accumulator.  Maximum, sum and accumulator are float32 (flash attention, arXiv 2205.14135, over a ragged list of blocks).
`tpu_blocks.py` has the grid and the layout, `pallas_tpu_vjp.py` the backward pass.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from psynth_jax.axes import Array
from psynth_jax.errors import InputError
from psynth_jax.ops.branch_attention import differentiable
from psynth_jax.ops.branch_attention.differentiable import Inputs, Kernel
from psynth_jax.ops.branch_attention.tpu_blocks import (
    MASKED,
    Call,
    Step,
    lay_out,
    product,
    source_refs,
)
from psynth_jax.ops.branch_attention.types import Context
from psynth_jax.ops.cached_heads import LANES, packs
from psynth_jax.ops.partial import level


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
    *,
    interpret: bool = False,
) -> tuple[Array, Array]:
    """Return out `[B, T, N, H]` in dtype and level `[B, T, N]`; see `api.branch_attention_partial`.

    Differentiable in q, k, v and the mapper's scalars; caches are constants.  Raises `InputError` for what `unsupported`
    names.
    """
    lacking = None if interpret else unsupported(q, context)
    if lacking:
        raise InputError(f"the TPU kernel does not take {lacking}")
    inputs = Inputs(q, k, v, context, jnp.asarray(layer, jnp.int32), window, with_new)
    return differentiable.attend(Kernel(_forward, _backward), inputs, scale, dtype, interpret=interpret)


def unsupported(q: Array, context: Context | None) -> str | None:
    """Say what of a call the kernel lacks; None: nothing."""
    caches = [] if context is None else [part.heads for part in context.parts]
    if len({heads.packed for heads in caches}) > 1:
        return "packed and split caches in one call"
    width = q.shape[-1]
    lanes = {heads.k.shape[-1] for heads in caches} or {2 * width if packs(width) else width}
    if any(count % LANES for count in lanes):
        return f"caches with {min(lanes)} lanes a slot; it takes heads of 64, packed, and multiples of {LANES}"
    return None


def _forward(inputs: Inputs, scale: float, dtype: Any, *, interpret: bool) -> tuple[Array, Array]:
    layout = lay_out(inputs, scale)
    call, rows = layout.call, layout.rows
    outputs = [
        (call.query_spec(call.lanes), jax.ShapeDtypeStruct(rows.shape, dtype)),
        (call.query_spec(1), jax.ShapeDtypeStruct((*rows.shape[:3], 1), jnp.float32)),
    ]
    scratch = [call.scratch(call.lanes, rows.dtype), *(call.scratch(lanes) for lanes in (1, call.lanes, 1, 1))]
    out, level = layout.pallas_call(
        functools.partial(_kernel, call), [], outputs, scratch,
        parallel_tokens=True, interpret=interpret, name="branch_attention",
    )  # fmt: skip
    return call.from_rows(out)[..., -call.width :], call.from_rows(level)[..., 0]


def _backward(*arguments: Any, interpret: bool) -> tuple[Array, Array, Array, Array | None]:
    from psynth_jax.ops.branch_attention import pallas_tpu_vjp

    return pallas_tpu_vjp.backward(*arguments, interpret=interpret)


def _kernel(call: Call, layers: Any, *refs: Any) -> None:
    step, rest = Step.at_grid(call, refs)
    sources, (out, level_out, turned, query_sums, acc, row_max, row_sum) = source_refs(call, rest)

    @pl.when(step.index == 0)
    def begin() -> None:
        acc[...] = jnp.zeros_like(acc)
        row_sum[...] = jnp.zeros_like(row_sum)
        row_max[...] = jnp.full_like(row_max, MASKED)
        query_sums[...] = step.query_sums()

    @pl.when(step.first_of_run())
    def turn() -> None:
        turned[...] = (step.turned_query() * (call.scale * step.scalar(0))).astype(turned.dtype)

    def read(source: int, k: Any, v: Any, k_scale: Any, v_scale: Any) -> None:
        seen, kept = step.visible(source)
        logits = step.logits(turned[...], k, k_scale, query_sums[...])
        logits = jnp.where(seen, logits, MASKED)
        old_max = row_max[...]
        new_max = jnp.maximum(old_max, logits.max(axis=-1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(logits - new_max), 0.0)
        fade = jnp.exp(old_max - new_max)
        here = weights.sum(axis=-1, keepdims=True)
        if v_scale is not None:
            weights = jnp.where(seen, weights * v_scale[0, 0], 0.0)
        values = jnp.where(kept, v[0, 0].astype(turned.dtype), 0)  # what lies outside may be NaN, and 0 * NaN is NaN
        mixed = product(weights.astype(turned.dtype), values, (2, 1))
        acc[...] = acc[...] * fade + step.scalar(2) * mixed + step.scalar(3) * here
        row_sum[...] = row_sum[...] * fade + here
        row_max[...] = new_max

    for number, arrays in enumerate(sources):
        pl.when(step.reads(number))(functools.partial(read, number, *arrays))

    @pl.when(step.index == pl.num_programs(3) - 1)
    def finish() -> None:
        out[0] = (acc[...] / jnp.where(row_sum[...] > 0, row_sum[...], 1.0)).astype(out.dtype)
        level_out[0] = level(row_max[...], row_sum[...])
