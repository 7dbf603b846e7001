"""Pools with more elements than an int32 counts: what is written at their end is found there.

slots    [ 0 0 0 ............ 0 0 0 | x x x x ] . .    the x's are written, read back, attended to;
                                                       what belongs behind the end is dropped
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import Array
from psynth_jax.bench.gpu_check.records import Records
from psynth_jax.bench.gpu_check.sizes import LargeCache, Sizes
from psynth_jax.kv.pool import Places, write_tokens
from psynth_jax.kv.transfer import read_page
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention import (
    Context,
    ContextPart,
    Runs,
    pallas_gpu,
    reference,
    xla,
)
from psynth_jax.ops.cached_heads import CachedHeads

DROPPED = 4  # tokens whose slots are behind the end
TOLERANCE = 0.03  # of bfloat16 queries; the output is at most about 1


def check(sizes: Sizes, records: Records) -> None:
    """Check all large caches."""
    for large in sizes.large_caches:
        if records.has_time_for(f"{large.elements} elements of {large.dtype}", seconds=10.0):
            records.add(compare(large))


def compare(large: LargeCache) -> dict[str, Any]:
    """Write, read back and attend to the last slots; the oracle has them in a small cache."""
    keys = jax.random.split(jax.random.key(0), 5)
    new = (large.layers, 1, large.tokens + DROPPED, large.kv_heads, large.width)
    k, v = (jax.random.normal(key, new, jnp.bfloat16) for key in keys[:2])
    heads = _written(_allocated(large, large.slots), k, v)
    small = _written(_allocated(large, large.tokens), k, v)

    first, block = large.slots - large.tokens, np.int32(0)
    found = read_page(heads, block, np.int32(first), large.tokens)
    same = _same(found, read_page(small, block, block, large.tokens))
    untouched = not bool(_any_number(heads, first))
    record: dict[str, Any] = {
        "elements": large.elements,
        "dtype": large.dtype,
        "past_int32": large.elements > 2**31,
        "read_back": same,
        "neighbours_untouched": untouched,
        "errors": _attention_errors(large, keys[2:], heads, small),
        "tolerance": TOLERANCE,
    }
    record["ok"] = same and untouched and max(record["errors"].values()) <= TOLERANCE
    return record


def _attention_errors(
    large: LargeCache,
    keys: Array,
    heads: CachedHeads,
    small: CachedHeads,
) -> dict[str, float]:
    """Return the largest error of each implementation in the last layer."""
    new = (1, large.queries, large.kv_heads, large.width)
    q = jax.random.normal(keys[0], (1, large.queries, large.heads, large.width), jnp.bfloat16)
    k, v = (jax.random.normal(key, new, jnp.bfloat16) for key in keys[1:])
    interpret = jax.default_backend() != "gpu"
    scale, layer = large.width**-0.5, large.layers - 1

    def attended(attend: Any, heads: CachedHeads, first: int) -> Any:
        context = _context(large, heads, first)
        rest = layer, scale, None, jnp.float32
        run = jax.jit(lambda q, k, v, context: attend(q, k, v, context, *rest)[0])
        return np.asarray(run(q, k, v, context))

    with jax.default_matmul_precision("highest"):
        exact = attended(reference.attend, small, 0)
        first = large.slots - large.tokens
        kernel = functools.partial(pallas_gpu.attend, interpret=interpret)
        found = {
            "pallas_gpu": attended(kernel, heads, first),
            "xla": attended(xla.attend, heads, first),
        }
    return {name: float(np.abs(out - exact).max()) for name, out in found.items()}


def _context(large: LargeCache, heads: CachedHeads, first: int) -> Context:
    """Return one branch: the written slots, turned back by 5 positions and mapped."""
    one = jnp.ones((1, 1), jnp.int32)
    runs = Runs(0 * one, first * one, large.tokens * one, 0 * one, 0 * one, one[0])
    cos, sin = rope.angles(5 * one, rope.plain_frequencies(1e6, large.width))
    scalars = jnp.array([1.05, 0.02, 0.95, 0.03], jnp.float32)
    scalars = jnp.broadcast_to(scalars, (large.layers, 1, 1, 4))
    return Context((ContextPart(heads, runs),), cos, sin, scalars, large.tokens * one[0])


def _allocated(large: LargeCache, slots: int) -> CachedHeads:
    shape = (large.layers, 1, large.kv_heads, slots, large.width)
    allocate = jax.jit(lambda: CachedHeads.allocate(shape, large.dtype, packed=False))
    return allocate()


def _written(heads: CachedHeads, k: Array, v: Array) -> CachedHeads:
    """Write the tokens into the last slots and behind them, in place as a step does."""
    slots = heads.slots + DROPPED - k.shape[2] + jnp.arange(k.shape[2], dtype=jnp.int32)
    write = jax.jit(write_tokens, donate_argnums=0)
    return write(heads, k, v, Places(jnp.zeros(1, jnp.int32), slots[None]))


def _same(one: CachedHeads, other: CachedHeads) -> bool:
    """Say whether both hold the same numbers."""
    equal = [bool(jnp.array_equal(a, b)) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)]
    return all(equal)


@functools.partial(jax.jit, static_argnums=1)
def _any_number(heads: CachedHeads, slots: int) -> Array:
    """Say whether any of the first `slots` slots holds anything but zeros; a reduction, it copies nothing."""
    assert heads.v is not None
    return jnp.any(heads.k[:, :, :, :slots] != 0) | jnp.any(heads.v[:, :, :, :slots] != 0)
