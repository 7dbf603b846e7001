"""The backward pass through the TPU kernel: gradients of the queries, the new keys and values, and the mapper's scalars.

One more pass over the same work list, in which weights are recomputed from the saved maximum and sum.  For a run with
turned query r = R q, logits x = c aK r.k + c bK sum(q), weights p, output gradient g and D the call's delta:

    dw = aV g.v + bV sum(g)         dx = p (dw - D)
    dr = sum_s dx k                 dq = c aK R^T dr + c bK sum_s dx          dk = c aK dx r,  dv = aV p g    (new tokens)
    daK = c r.dr     dbK = c sum(q) sum_s dx     daV = sum_s p g.v     dbV = sum_s p sum(g)

summed over query rows.  R^T dr = dr * upright + swap(dr * sideways) with swap outside of the kernel, so two accumulators
take the two terms and no lane moves.  Branch caches are constants: nothing is computed for them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from psynth_jax.axes import Array
from psynth_jax.ops.branch_attention.differentiable import Inputs
from psynth_jax.ops.branch_attention.tpu_blocks import Call, Layout, Step, lay_out, product, source_refs, swap_halves
from psynth_jax.ops.branch_attention.worklist import WorkList

_NUMBERS = 128  # lanes of the row that takes a run's four sums


def backward(
    inputs: Inputs, scale: float, level: Array, gradient: Array, delta: Array, *, interpret: bool
) -> tuple[Array, Array, Array, Array | None]:
    """Return the gradients of q, k, v and scalars; see `differentiable.Kernel`."""
    layout = lay_out(inputs, scale)
    call = layout.call
    rows = (call.to_rows(x[..., None]) for x in (delta, level))
    upright, sideways, new_k, new_v, sums = _run(
        layout, call.value_rows(gradient.astype(inputs.q.dtype)), *rows, interpret=interpret
    )
    dq = call.from_rows(upright + swap_halves(sideways, call.width))[..., : call.width]
    dk, dv = (new[:, :, : call.tokens].swapaxes(1, 2) for new in (new_k[..., : call.width], new_v[..., -call.width :]))
    of_scalars = None if inputs.context is None else _of_scalars(layout, sums, inputs.context.scalars, inputs.layer)
    return dq.astype(inputs.q.dtype), dk.astype(inputs.k.dtype), dv.astype(inputs.v.dtype), of_scalars


def _of_scalars(layout: Layout, sums: Array, scalars: Array, layer: Array) -> Array:
    """Add the sums of every run `[B, heads, blocks, X, 1, lanes]` to the scalars of its branch, `[L, B, W, 4]`."""
    work = layout.work
    used = (work.end > work.begin)[..., None]  # what no step wrote may be anything
    of_run = jnp.where(used[:, None, None], sums[..., 0, :4], 0).sum(axis=(1, 2))
    branches = scalars.shape[2]
    mine = jax.nn.one_hot(work.branch, branches + 1, dtype=jnp.float32)[..., :branches]  # the identity is no branch
    of_branch = jnp.einsum("bxn,bxw->bwn", of_run, mine, precision="highest")
    return jnp.zeros_like(scalars).at[layer].set(of_branch.astype(scalars.dtype))


def _run(layout: Layout, gradient: Array, delta: Array, level: Array, *, interpret: bool) -> list[Array]:
    """Run the kernel; return both terms of dq as rows, new dk and dv `[B, K, slots, lanes]`, and the sums of runs."""
    call, rows = layout.call, layout.rows
    batch, kv_heads, all_rows, lanes = rows.shape
    heads, runs = call.cut.kv_heads, layout.work.row.shape[1]
    slots = -(-layout.new_slots // call.sizes[0]) * call.sizes[0]  # whole blocks: the last one is written as one, too
    wide, single = call.query_spec(lanes), call.query_spec(1)
    new = pl.BlockSpec((1, heads, slots, lanes), lambda b, h, t, step, *_: (b, h, 0, 0))
    sums = pl.BlockSpec((1, 1, 1, 1, 1, _NUMBERS), _sums_map)
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    outputs = [
        (wide, float32(*rows.shape)),
        (wide, float32(*rows.shape)),
        (new, float32(batch, kv_heads, slots, lanes)),
        (new, float32(batch, kv_heads, slots, lanes)),
        (sums, float32(batch, kv_heads // heads, all_rows // call.rows, runs, 1, _NUMBERS)),
    ]
    scratch = [call.scratch(lanes, rows.dtype), *(call.scratch(n) for n in (1, lanes, 1, 1, 1, lanes, lanes))]
    scratch += [pltpu.VMEM((heads, slots, lanes), jnp.float32)] * 2
    extra = [(wide, gradient), (single, delta), (single, level)]
    return layout.pallas_call(
        functools.partial(_kernel, call), extra, outputs, scratch,
        parallel_tokens=False, interpret=interpret, name="branch_attention_vjp",
    )  # fmt: skip


def _sums_map(b: Any, h: Any, t: Any, step: Any, layers: Any, *refs: Any) -> tuple[Any, ...]:
    return b, h, t, WorkList(*refs).run[b, step], 0, 0


def _kernel(call: Call, layers: Any, *refs: Any) -> None:
    step, (gradient, delta, level, *rest) = Step.at_grid(call, refs)
    sources, outs_and_scratch = source_refs(call, rest)
    upright_out, sideways_out, new_k_out, new_v_out, sums_out = outs_and_scratch[:5]
    turned, query_sums, of_turned, of_logits, of_weights, of_values, upright, sideways, new_k, new_v = outs_and_scratch[5:]
    scale, tokens = call.scale, pl.num_programs(2)

    @pl.when(step.index == 0)
    def begin() -> None:
        upright[...], sideways[...] = jnp.zeros_like(upright), jnp.zeros_like(sideways)
        query_sums[...] = step.query_sums()

    @pl.when((step.index == 0) & (step.tokens == 0))
    def begin_row() -> None:
        new_k[...], new_v[...] = jnp.zeros_like(new_k), jnp.zeros_like(new_v)

    @pl.when(step.first_of_run())
    def begin_run() -> None:
        turned[...] = (step.turned_query() * (scale * step.scalar(0))).astype(turned.dtype)
        for sums in (of_turned, of_logits, of_weights, of_values):
            sums[...] = jnp.zeros_like(sums)

    def read(source: int, k: Any, v: Any, k_scale: Any, v_scale: Any) -> None:
        seen, kept = step.visible(source)
        logits = step.logits(turned[...], k, k_scale, query_sums[...])
        weights = jnp.where(seen, jnp.exp(logits - level[0]), 0.0)
        keys, values = (jnp.where(kept, x[0, 0].astype(turned.dtype), 0) for x in (k, v))
        through_values = product(gradient[0], values, (2, 2))
        if v_scale is not None:
            through_values = jnp.where(seen, through_values * v_scale[0, 0], 0.0)
        gradient_sums = gradient[0].astype(jnp.float32).sum(axis=-1, keepdims=True)
        of_logit = weights * (step.scalar(2) * through_values + step.scalar(3) * gradient_sums - delta[0])
        of_logits[...] += of_logit.sum(axis=-1, keepdims=True)
        of_weights[...] += weights.sum(axis=-1, keepdims=True)
        of_values[...] += (weights * through_values).sum(axis=-1, keepdims=True)
        if source == 0:
            size = call.sizes[0]
            at = pl.ds((step.index - step.work.begin[step.row, step.run]) * size, size)
            new_k[:, at, :] += product(of_logit.astype(turned.dtype), turned[...], (1, 1))
            new_v[:, at, :] += product(weights.astype(turned.dtype), gradient[0], (1, 1))
        if k_scale is not None:
            of_logit = jnp.where(seen, of_logit * k_scale[0, 0], 0.0)
        of_turned[...] += product(of_logit.astype(turned.dtype), keys, (2, 1))

    for number, arrays in enumerate(sources):
        pl.when(step.reads(number))(functools.partial(read, number, *arrays))

    @pl.when(step.last_of_run())
    def finish_run() -> None:
        straight, across = step.rotation[0, 0, 0:1], step.rotation[0, 0, 1:2]
        scaled = of_turned[...] * (scale * step.scalar(0))
        upright[...] += scaled * straight + (scale * step.scalar(1)) * of_logits[...]
        sideways[...] += scaled * across
        gradient_sums = gradient[0].astype(jnp.float32).sum(axis=-1, keepdims=True)
        numbers = (
            scale * (step.turned_query() * of_turned[...]).sum(),
            scale * (query_sums[...] * of_logits[...]).sum(),
            of_values[...].sum(),
            (of_weights[...] * gradient_sums).sum(),
        )
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, _NUMBERS), 1)
        sums_out[0, 0, 0, 0] = sum(jnp.where(lane == index, number, 0.0) for index, number in enumerate(numbers))

    @pl.when(step.index == pl.num_programs(3) - 1)
    def finish() -> None:
        upright_out[0], sideways_out[0] = upright[...], sideways[...]

    @pl.when((step.index == pl.num_programs(3) - 1) & (step.tokens == tokens - 1))
    def finish_row() -> None:
        new_k_out[0], new_v_out[0] = new_k[...], new_v[...]
