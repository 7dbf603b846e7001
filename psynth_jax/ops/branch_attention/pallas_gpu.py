"""The folded form as one Pallas kernel for GPUs, lowered through Triton: all that a row reads in one pass.

At the first block of a run the query rows are turned by the branch's shift; the mapper's scalars meet the logits and the
weights.  Maximum, sum and accumulator are float32 (flash attention, arXiv 2205.14135).  When query rows are too few to fill
the device, as in decode, the steps of a row are split over programs and their partial results merged afterwards.
`gpu_blocks.py` has the grid and the walk over runs, `pallas_gpu_vjp.py` the backward pass.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array
from psynth_jax.errors import InputError
from psynth_jax.ops.branch_attention import differentiable, gpu_blocks
from psynth_jax.ops.branch_attention.differentiable import Inputs, Kernel
from psynth_jax.ops.branch_attention.gpu_blocks import LOG2E, MASKED, Block, Call, Operands, Program, Segment, product
from psynth_jax.ops.branch_attention.gpu_device import local_device
from psynth_jax.ops.branch_attention.gpu_tiles import forward_tiles
from psynth_jax.ops.branch_attention.types import Context
from psynth_jax.ops.partial import Partial, finalize, level, merge_stacked


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

    Differentiable in q, k, v and the mapper's scalars; caches are constants.

    Raises:
      InputError: a head width, dtype or cache layout that the kernel does not take.
    """
    lacks = unsupported(q, context)
    if lacks is not None:
        raise InputError(f"the GPU kernel does not take {lacks}; or use implementation 'xla'")
    inputs = Inputs(q, k, v, context, jnp.asarray(layer, jnp.int32), window, with_new)
    return differentiable.attend(Kernel(_forward, _backward), inputs, scale, dtype, interpret=interpret)


def unsupported(q: Array, context: Context | None) -> str | None:
    """Say what of a call the kernel lacks; None: nothing."""
    caches = [] if context is None else [part.heads for part in context.parts]
    return gpu_blocks.unsupported(q, caches)


def _forward(inputs: Inputs, scale: float, dtype: Any, *, interpret: bool) -> tuple[Array, Array]:
    sources = gpu_blocks.sources_of(inputs)
    call = _cut(inputs, sources, scale)
    out, levels = _run(call, gpu_blocks.lay_out(call, inputs, sources), dtype, interpret=interpret)
    return call.from_rows(out), call.from_rows(levels)


def _backward(*arguments: Any, interpret: bool) -> tuple[Array, Array, Array, Array | None]:
    from psynth_jax.ops.branch_attention import pallas_gpu_vjp

    return pallas_gpu_vjp.backward(*arguments, interpret=interpret)


def _cut(inputs: Inputs, sources: Any, scale: float) -> Call:
    """Return the static part of a forward call."""
    q, kv_heads = inputs.q, inputs.k.shape[2]
    batch, tokens, heads, width = q.shape
    caches, runs = sources
    columns = tuple(source.row.shape[1] for source in runs)
    capacity = tokens + sum(cache.slots * count for cache, count in zip(caches, columns[1:], strict=True))
    tiles = forward_tiles(
        tokens * (heads // kv_heads),
        width,
        q.dtype.itemsize,
        tuple(cache.k.dtype.itemsize for cache in caches),
        batch * kv_heads,
        capacity,
        local_device(),
    )
    return Call(scale, heads // kv_heads, tokens, width, tiles, columns, inputs.window is not None)


def _run(call: Call, operands: Operands, dtype: Any, *, interpret: bool) -> tuple[Array, Array]:
    """Run the kernel; return the output rows `[B, K, M, H]` and levels `[B, K, M]`."""
    batch, kv_heads, rows, width = operands.rows.shape
    splits = call.tiles.splits
    single = jax.ShapeDtypeStruct((splits, batch, kv_heads, rows), jnp.float32)
    out_shape = jax.ShapeDtypeStruct((*single.shape, width), dtype if splits == 1 else jnp.float32)
    swapped = None if operands.cos is None else jnp.roll(operands.rows, width // 2, axis=-1)
    grid = (-(-rows // call.tiles.rows), kv_heads, batch, splits)
    kernel = call.pallas_call(
        functools.partial(_kernel, call), grid, (out_shape, single, single), "branch_attention", interpret=interpret
    )
    out, row_max, row_sum = kernel(operands, swapped)
    if splits == 1:
        return out[0], level(row_max[0], row_sum[0])
    merged = merge_stacked(Partial(out, row_max, row_sum))
    return finalize(merged).astype(dtype), level(merged.row_max, merged.row_sum)


class _Seen(NamedTuple):
    """A softmax on its way.  out: mapped values without their bias; row_max counts in powers of two; bias: sum of p bV."""

    out: Any
    row_max: Any
    row_sum: Any
    bias: Any


def _kernel(call: Call, operands: Operands, swapped: Any, out: Any, max_out: Any, sum_out: Any) -> None:
    program = Program.at_grid(call, operands)
    rows, width = call.tiles.rows, call.width
    zero = jnp.zeros((rows,), jnp.float32)
    begun = _Seen(jnp.zeros((rows, width), jnp.float32), jnp.full((rows,), MASKED, jnp.float32), zero, zero)
    seen = program.walk(functools.partial(_visit, call, swapped), begun)
    total = seen.out + seen.bias[:, None]
    if call.tiles.splits == 1:
        total = total / jnp.where(seen.row_sum > 0, seen.row_sum, 1.0)[:, None]
    at = program.split, program.batch, program.head
    program.store_rows(out, at, total.astype(out.dtype), slice(None))
    program.store_rows(max_out, at, seen.row_max * (1 / LOG2E))
    program.store_rows(sum_out, at, seen.row_sum)


def _visit(call: Call, swapped: Any, segment: Segment, seen: _Seen) -> _Seen:
    """Attend to a program's part of a segment."""
    program = segment.program
    query = program.load_rows(program.refs.rows, slice(None))
    dtype, scale = query.dtype, call.scale * LOG2E
    wide = query.astype(jnp.float32)
    shift = value_scale = value_bias = None
    if segment.mapped:
        upright, sideways = _rotation(call, segment)
        turned = wide * upright + program.load_rows(swapped, slice(None)).astype(jnp.float32) * sideways
        shift = (scale * segment.scalar(1)) * wide.sum(axis=1)
        scale = scale * segment.scalar(0)
        value_scale, value_bias = segment.scalar(2), segment.scalar(3)
    else:
        turned = wide
    turned = (turned * scale).astype(dtype)

    def step(block: Block, seen: _Seen) -> _Seen:
        k_scale, v_scale = block.scales()
        logits = product(turned, block.keys(dtype, slice(None)), trans_b=True)
        if k_scale is not None:
            logits = logits * k_scale
        if shift is not None:
            logits = logits + shift[:, None]
        if not block.whole:
            visible = block.seen()
            logits = jnp.where(visible, logits, MASKED)
        row_max = jnp.maximum(seen.row_max, logits.max(axis=1))
        weights = jnp.exp2(logits - row_max[:, None])
        if segment.partly_seen:  # a row may see nothing of a block, and nothing before it: then its maximum is MASKED
            weights = jnp.where(visible, weights, 0.0)
        fade = jnp.exp2(seen.row_max - row_max)
        here = weights.sum(axis=1)
        if value_scale is not None:
            weights = weights * (value_scale if v_scale is None else value_scale * v_scale)
        elif v_scale is not None:
            weights = weights * v_scale
        out = seen.out * fade[:, None] + product(weights.astype(dtype), block.values(dtype, slice(None)))
        bias = seen.bias * fade if value_bias is None else seen.bias * fade + value_bias * here
        return _Seen(out, row_max, seen.row_sum * fade + here, bias)

    return segment.fold(step, seen)


def _rotation(call: Call, segment: Segment) -> tuple[Array, Array]:
    """Return two factors `[1, H]`: with y the query x with its halves swapped, `R x = x * first + y * second`."""
    half = call.width // 2
    lane = jnp.arange(call.width, dtype=jnp.int32)
    at, refs = (segment.program.batch, segment.branch, lane & (half - 1)), segment.program.refs
    sine = refs.sin[at]
    return refs.cos[at][None], jnp.where(lane < half, -sine, sine)[None]
