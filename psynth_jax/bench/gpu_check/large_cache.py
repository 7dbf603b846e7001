"""Caches with more elements than an int32 counts: what is written at their end is found there.

slots    [ 0 0 0 ............ 0 0 0 | x x x x ]    the x's are written, read back, attended to
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
from psynth_jax.cache import KVCache
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention import (
    Context,
    ContextPart,
    Segments,
    pallas_gpu,
    reference,
    xla,
)
from psynth_jax.ops.cached_heads import CachedHeads

TOLERANCE = 0.03  # of bfloat16 queries; the output is at most about 1


def check(sizes: Sizes, records: Records) -> None:
    """Check all large caches."""
    for large in sizes.large_caches:
        if records.has_time_for(f"{large.elements} elements of {large.dtype}", seconds=10.0):
            records.add(compare(large))


def compare(large: LargeCache) -> dict[str, Any]:
    """Write, read back and attend to the last slots; the oracle has them in a small cache."""
    keys = jax.random.split(jax.random.key(0), 5)
    new = (large.layers, 1, large.tokens, large.kv_heads, large.width)
    k, v = (jax.random.normal(key, new, jnp.bfloat16) for key in keys[:2])
    cache = _written(_allocated(large, large.slots), k, v)
    small = _written(_allocated(large, large.tokens), k, v)

    first = large.slots - large.tokens
    same = _same(cache.slots_of(0, first, large.tokens), small.slots_of(0, 0, large.tokens))
    before = cache.slots_of(0, first - large.tokens, large.tokens)
    nothing = jax.tree.map(jnp.zeros_like, before)
    untouched = _same(before, nothing)
    record: dict[str, Any] = {
        "elements": large.elements,
        "dtype": large.dtype,
        "past_int32": large.elements > 2**31,
        "read_back": same,
        "neighbours_untouched": untouched,
        "errors": _attention_errors(large, keys[2:], cache.heads, small.heads),
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
        run = jax.jit(lambda q, k, v, context: attend(q, k, v, None, context, *rest)[0])
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
    segments = Segments(0 * one, first * one, large.tokens * one, 0 * one)
    cos, sin = rope.angles(5 * one, rope.plain_frequencies(1e6, large.width))
    scalars = jnp.array([1.05, 0.02, 0.95, 0.03], jnp.float32)
    scalars = jnp.broadcast_to(scalars, (large.layers, 1, 1, 4))
    return Context((ContextPart(heads, segments),), cos, sin, scalars)


def _allocated(large: LargeCache, slots: int) -> KVCache:
    sizes = large.layers, 1, large.kv_heads, slots, large.width
    allocate = jax.jit(lambda: KVCache.allocate(*sizes, large.dtype, packed=False))
    return allocate()


def _written(cache: KVCache, k: Array, v: Array) -> KVCache:
    """Write the tokens into the last slots, in place as a step does."""
    tokens = k.shape[2]
    start = jnp.array([cache.slots - tokens], jnp.int32)
    append = jax.jit(KVCache.append, donate_argnums=0)
    return append(cache, k, v, start, jnp.array([tokens], jnp.int32))


def _same(one: tuple[Array, Array], other: tuple[Array, Array]) -> bool:
    """Say whether both halves hold the same numbers."""
    equal = [bool(jnp.array_equal(a, b)) for a, b in zip(one, other, strict=True)]
    return all(equal)
