"""Attention's GPU kernel against the oracle, forward and backward."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import Array
from psynth_jax.bench.gpu_check.records import Records
from psynth_jax.bench.gpu_check.sizes import KernelCheck, Sizes
from psynth_jax.ops.branch_attention import pallas_gpu, reference
from psynth_jax.ops.branch_attention.cases import arguments

THREADS = 4
INPUTS = ("q", "k", "v", "scalars")  # what gradients are taken of
# The largest absolute error of the output, and of a gradient over the gradient's largest number.
FORWARD = {"float32": 2e-5, "bfloat16": 0.03}
BACKWARD = {"float32": 1e-4, "bfloat16": 0.03}


def check(sizes: Sizes, records: Records) -> None:
    """Compare all cases; each record says whether it is within its tolerance.

    Most of the time goes into compiling, which several threads do at once.
    """

    def compared(each: KernelCheck) -> dict[str, Any] | None:
        name = f"{each.case.name} {each.dtype} cache {each.cache_dtype}"
        return compare(each) if records.has_time_for(name, seconds=5.0) else None

    with ThreadPoolExecutor(THREADS) as threads:
        for record in threads.map(compared, sizes.kernels):
            if record is not None:
                records.add(record)


def compare(each: KernelCheck) -> dict[str, Any]:
    """Run a case through the kernel, and the oracle in float32 on the same rounded numbers."""
    function = with_gradients if each.backward else forward
    drawn = arguments(each.case, jnp.dtype(each.dtype), each.cache_dtype)
    operands, layer, scale = drawn[:4], drawn[4], drawn[5]
    interpret = jax.default_backend() != "gpu"

    def kernel(q: Array, k: Array, v: Array, context: Any) -> Array:
        rest = layer, scale, None, q.dtype
        return pallas_gpu.attend(q, k, v, context, *rest, interpret=interpret)[0]

    def oracle(q: Array, k: Array, v: Array, context: Any) -> Array:
        return reference.attend(q, k, v, context, layer, scale, None, jnp.float32)[0]

    # Without it GPUs multiply float32 matrices in tf32.
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(lambda *new: function(kernel, *new))(*operands)
        theirs = jax.jit(lambda *new: function(oracle, *new))(*jax.tree.map(_in_float32, operands))
    error = _largest(_difference(ours[0], theirs[0]))
    record: dict[str, Any] = {
        "case": each.case.name,
        "dtype": each.dtype,
        "cache_dtype": each.cache_dtype,
        "passes": "forward and backward" if each.backward else "forward",
        "interpreted": interpret,
        "error": error,
        "tolerance": FORWARD[each.dtype],
        "ok": error <= FORWARD[each.dtype],
    }
    if each.backward:
        errors = {}
        for name, one, other in zip(INPUTS, ours[1], theirs[1], strict=True):
            errors[name] = _largest(_difference(one, other)) / _largest(other)
        worst = max(errors.values())
        record |= {"gradient_errors": errors, "gradient_tolerance": BACKWARD[each.dtype]}
        record["ok"] = record["ok"] and worst <= BACKWARD[each.dtype]
    return record


def forward(attend: Any, q: Array, k: Array, v: Array, context: Any) -> tuple[Array]:
    """Return the output alone."""
    return (attend(q, k, v, context),)


def with_gradients(
    attend: Any,
    q: Array,
    k: Array,
    v: Array,
    context: Any,
) -> tuple[Array, Any]:
    """Return the output, and the gradients of a weighted sum of it with respect to `INPUTS`."""
    weight = jax.random.normal(jax.random.key(8), q.shape, jnp.float32)

    def loss(q: Array, k: Array, v: Array, scalars: Array) -> tuple[Array, Array]:
        out = attend(q, k, v, dataclasses.replace(context, scalars=scalars))
        return (weight * out.astype(jnp.float32)).sum(), out

    gradients, out = jax.grad(loss, (0, 1, 2, 3), has_aux=True)(q, k, v, context.scalars)
    return out, gradients


def _in_float32(x: Any) -> Any:
    """Widen floating-point numbers; int8 caches stay what they are."""
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _difference(one: Array, other: Array) -> Any:
    return np.asarray(one, np.float32) - np.asarray(other, np.float32)


def _largest(numbers: Any) -> float:
    """Return the largest absolute number, NaN if there is one."""
    return float(np.abs(np.asarray(numbers, np.float32)).max())
