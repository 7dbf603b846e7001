"""The backward pass through the GPU kernel: gradients of the queries, the new keys and values, and the mapper's scalars.

Weights are recomputed from the saved level.  For a run with turned query r = R q, logits
x = c aK r.k + c bK sum(q), weights p, output gradient g and D the call's delta:

    dw = aV g.v + bV sum(g)         dx = p (dw - D)
    dr = sum_s dx k                 dq = c aK R^T dr + c bK sum_s dx          dk = c aK dx r,  dv = aV p g    (new tokens)
    daK = c r.dr     dbK = c sum(q) sum_s dx     daV = sum_s p g.v     dbV = sum_s p sum(g)

summed over query rows.  Two kernels, so that no sum needs an atomic addition: one walks the runs of a block of query
rows (dq, and the sums of every run), one walks the query rows of a block of new tokens (dk, dv).  Halves of a head are
kept apart, since R mixes them.  Branch caches are constants: nothing is computed for them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from psynth_jax.axes import Array
from psynth_jax.ops.branch_attention import gpu_blocks
from psynth_jax.ops.branch_attention.differentiable import Inputs
from psynth_jax.ops.branch_attention.gpu_blocks import LOG2E, Block, Call, Operands, Program, Segment, halves, product
from psynth_jax.ops.branch_attention.gpu_device import local_device
from psynth_jax.ops.branch_attention.gpu_tiles import backward_tiles


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Given:
    """What the way back knows of query rows.  gradient `[B, K, M, H]`; delta `[B, K, M]`: D.

    level `[B, K, M]`: a weight is 2 to the power of (logit in powers of two - level).
    """

    gradient: Any
    delta: Any
    level: Any


def backward(
    inputs: Inputs, scale: float, level: Array, gradient: Array, delta: Array, *, interpret: bool
) -> tuple[Array, Array, Array, Array | None]:
    """Return the gradients of q, k, v and scalars; see `differentiable.Kernel`."""
    q, k, context = inputs.q, inputs.k, inputs.context
    sources = gpu_blocks.sources_of(inputs)
    _, tokens, heads, width = q.shape
    group = heads // k.shape[2]
    cached = tuple(cache.k.dtype.itemsize for cache in sources[0])
    tiles = backward_tiles(tokens * group, width, q.dtype.itemsize, cached, local_device())
    columns = tuple(source.row.shape[1] for source in sources[1])
    call = Call(scale, group, tokens, width, tiles, columns, inputs.window is not None)
    operands = gpu_blocks.lay_out(call, inputs, sources)
    given = _Given(call.to_rows(gradient.astype(q.dtype)), call.to_rows(delta), call.to_rows(level) * LOG2E)
    dq, sums = _of_queries(call, operands, given, interpret=interpret)
    dk, dv = _of_new(call, operands, given, interpret=interpret)
    if inputs.with_new is not None:
        dk, dv = (jnp.where(inputs.with_new, x, 0) for x in (dk, dv))
    of_scalars = None if context is None else _of_scalars(call, operands, sums, inputs.layer)
    return call.from_rows(dq), dk, dv, of_scalars


def _of_scalars(call: Call, operands: Operands, sums: Array, layer: Array) -> Array:
    """Add the sums of every mapped segment, `[B, K, blocks, X, 4]`, to the scalars of its branch, `[L, B, W, 4]`."""
    new = call.columns[0]  # they have no scalars
    branch, length = operands.runs[:, new:, 3], operands.runs[:, new:, 2]
    used = (length > 0)[:, None, None, :, None]  # what no program wrote may be anything
    of_segment = jnp.where(used, sums[..., new:, :], 0).sum(axis=(1, 2))
    mine = jax.nn.one_hot(branch, operands.scalars.shape[2], dtype=jnp.float32)
    of_branch = jnp.einsum("bxn,bxw->bwn", of_segment, mine, precision="highest")
    return jnp.zeros_like(operands.scalars).at[layer].set(of_branch.astype(operands.scalars.dtype))


# --------------------------------------------------------------------------------------- queries and sums of segments


def _of_queries(call: Call, operands: Operands, given: _Given, *, interpret: bool) -> tuple[Array, Array]:
    """Return dq as rows `[B, K, M, H]`, and the four sums of every segment, `[B, K, blocks, X, 4]`."""
    batch, kv_heads, rows, _ = operands.rows.shape
    blocks = -(-rows // call.tiles.rows)
    out_shape = (
        jax.ShapeDtypeStruct(operands.rows.shape, operands.rows.dtype),
        jax.ShapeDtypeStruct((batch, kv_heads, blocks, sum(call.columns), 4), jnp.float32),
    )
    kernel = call.pallas_call(
        functools.partial(_queries_kernel, call), (blocks, kv_heads, batch, 1), out_shape,
        "branch_attention_vjp_queries", interpret=interpret,
    )  # fmt: skip
    return kernel(operands, given)


def _queries_kernel(call: Call, operands: Operands, given: _Given, dq: Any, sums: Any) -> None:
    program = Program.at_grid(call, operands)
    zero = jnp.zeros((call.tiles.rows, call.width // 2), jnp.float32)
    of_query = program.walk(functools.partial(_visit, call, given, sums), (zero, zero))
    for lanes, half in zip(halves(call.width), of_query, strict=True):
        program.store_rows(dq, (program.batch, program.head), half.astype(dq.dtype), lanes)


def _visit(call: Call, given: _Given, sums: Any, segment: Segment, of_query: tuple[Array, Array]) -> tuple[Array, Array]:
    """Add a segment's share to dq, and store its four sums."""
    program, scale = segment.program, call.scale
    dtype = program.refs.rows.dtype
    gradient = program.load_rows(given.gradient, slice(None))
    gradient_sums = gradient.astype(jnp.float32).sum(axis=1)
    delta, level = program.load_rows(given.delta), program.load_rows(given.level)
    mapped = segment.mapped
    key_scale, key_bias, value_scale, value_bias = (segment.scalar(n) if mapped else float(n % 2 == 0) for n in range(4))
    first, second, query_sums = _turned(segment)
    turned = tuple((half * (scale * LOG2E * key_scale)).astype(dtype) for half in (first, second))
    lanes = halves(call.width)

    def step(block: Block, sums_so_far: Any) -> Any:
        of_first, of_second, of_logits, of_weights, of_values = sums_so_far
        k_scale, v_scale = block.scales()
        keys = tuple(block.keys(dtype, half) for half in lanes)
        raw = product(turned[0], keys[0], trans_b=True) + product(turned[1], keys[1], trans_b=True)
        raw = raw if k_scale is None else raw * k_scale
        raw = raw if not mapped else raw + ((scale * LOG2E) * key_bias * query_sums)[:, None]
        weights = jnp.exp2(raw - level[:, None])
        if not block.whole:
            weights = jnp.where(block.seen(), weights, 0.0)
        through_values = product(gradient, block.values(dtype, slice(None)), trans_b=True)
        through_values = through_values if v_scale is None else through_values * v_scale
        of_weight = through_values
        if mapped:
            of_weight = value_scale * through_values + (value_bias * gradient_sums)[:, None]
        of_logit = weights * (of_weight - delta[:, None])
        through_keys = (of_logit if k_scale is None else of_logit * k_scale).astype(dtype)
        return (
            of_first + product(through_keys, keys[0]),
            of_second + product(through_keys, keys[1]),
            of_logits + of_logit.sum(axis=1),
            of_weights + weights.sum(axis=1),
            of_values + (weights * through_values).sum(axis=1),
        )

    wide = jnp.zeros((call.tiles.rows, call.width // 2), jnp.float32)
    single = jnp.zeros((call.tiles.rows,), jnp.float32)
    of_first, of_second, of_logits, of_weights, of_values = segment.fold(step, (wide, wide, single, single, single))
    if not mapped:
        return of_query[0] + scale * of_first, of_query[1] + scale * of_second

    first, second, query_sums = _turned(segment)  # loaded again, so that the loop need not keep it
    there = jnp.where(program.row_indices() < call.rows, 1.0, 0.0)
    numbers = (
        scale * ((first * of_first).sum(axis=1) + (second * of_second).sum(axis=1)),
        scale * (query_sums * of_logits),
        of_values,
        of_weights * gradient_sums,
    )
    for index, number in enumerate(numbers):
        sums[program.batch, program.head, program.block, segment.index, index] = (number * there).sum()
    cos, sin = segment.rotation()
    of_first, of_second = (half * (scale * key_scale) for half in (of_first, of_second))
    straight = ((scale * key_bias) * of_logits)[:, None]
    return (
        of_query[0] + of_first * cos + of_second * sin + straight,
        of_query[1] + of_second * cos - of_first * sin + straight,
    )


def _turned(segment: Segment) -> tuple[Array, Array, Array]:
    """Return both halves of the query rows, float32, turned by the branch's shift, and the sums of the rows unturned."""
    program = segment.program
    first, second = (program.load_rows(program.refs.rows, half).astype(jnp.float32) for half in halves(program.call.width))
    sums = first.sum(axis=1) + second.sum(axis=1)
    if not segment.mapped:
        return first, second, sums
    cos, sin = segment.rotation()
    return first * cos - second * sin, second * cos + first * sin, sums


# ------------------------------------------------------------------------------------------------------- new tokens


def _of_new(call: Call, operands: Operands, given: _Given, *, interpret: bool) -> tuple[Array, Array]:
    """Return dk and dv `[B, T, K, H]` of the new tokens."""
    batch, kv_heads, _, _ = operands.rows.shape
    blocks = -(-call.tokens // call.tiles.slots)
    shape = jax.ShapeDtypeStruct(operands.k.shape, operands.k.dtype)
    kernel = call.pallas_call(
        functools.partial(_new_kernel, call), (blocks, kv_heads, batch), (shape, shape),
        "branch_attention_vjp_new", interpret=interpret,
    )  # fmt: skip
    return kernel(operands.rows, operands.k, operands.v, operands.runs, given)


def _new_kernel(call: Call, rows: Any, k: Any, v: Any, runs: Any, given: _Given, dk: Any, dv: Any) -> None:
    slots, size = call.tiles.slots, call.tiles.rows
    first, head, batch = pl.program_id(0) * slots, pl.program_id(1), pl.program_id(2)
    slot = first + jnp.arange(slots, dtype=jnp.int32)
    at, there = (batch, pl.ds(first, slots), head, slice(None)), (slot < call.tokens)[:, None]
    keys, values = (plgpu.load(ref.at[at], mask=there, other=0).astype(rows.dtype) for ref in (k, v))
    scale = call.scale

    def step(index: Any, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
        of_keys, of_values = so_far
        row = index * size + jnp.arange(size, dtype=jnp.int32)
        real = row < call.rows
        block = (batch, head, pl.ds(index * size, size))
        query, gradient = (
            plgpu.load(ref.at[(*block, slice(None))], mask=real[:, None], other=0) for ref in (rows, given.gradient)
        )
        delta, level = (plgpu.load(ref.at[block], mask=real, other=0) for ref in (given.delta, given.level))
        turned = (query.astype(jnp.float32) * (scale * LOG2E)).astype(query.dtype)
        weights = jnp.exp2(product(turned, keys, trans_b=True) - level[:, None])
        seen = ((slot * call.group)[None] <= row[:, None]) & real[:, None]
        if call.windowed:  # the new tokens are the first run
            seen &= row[:, None] < ((slot + runs[batch, 0, 6]) * call.group)[None]
        weights = jnp.where(seen, weights, 0.0)
        of_logit = weights * (product(gradient, values, trans_b=True) - delta[:, None])
        return (
            of_keys + product(of_logit.astype(query.dtype), query, trans_a=True),
            of_values + product(weights.astype(query.dtype), gradient, trans_a=True),
        )

    zero = jnp.zeros((slots, call.width), jnp.float32)
    begin = jax.lax.div(first * call.group, size)  # rows before this see none of the slots
    of_keys, of_values = jax.lax.fori_loop(begin, -(-call.rows // size), step, (zero, zero))
    plgpu.store(dk.at[at], (of_keys * scale).astype(dk.dtype), mask=there)
    plgpu.store(dv.at[at], of_values.astype(dv.dtype), mask=there)
