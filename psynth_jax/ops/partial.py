"""Partial softmax: attention over some of the keys, in a form that merges exactly with attention over the others.

A `Partial` holds, for every query, the weighted sum of values, the largest logit seen and the sum of weights, all relative
to that largest logit.  Merging is associative and commutative, so the order of branches, blocks or devices does not matter
(online softmax, arXiv 1805.02867).  float32 throughout.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Partial:
    """out `[..., H]` unnormalised, row_max `[...]` (-inf when nothing was seen), row_sum `[...]`."""

    out: Array
    row_max: Array
    row_sum: Array


def empty(shape: tuple[int, ...], head_width: int) -> Partial:
    """Return the neutral element of `merge` for queries of this shape."""
    return Partial(
        jnp.zeros((*shape, head_width), jnp.float32), jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.float32)
    )


def weight(old_max: Array, new_max: Array) -> Array:
    """Return exp(old - new), 0 where nothing was seen on either side (-inf minus -inf would be NaN)."""
    return jnp.where(jnp.isneginf(old_max), 0.0, jnp.exp(old_max - jnp.where(jnp.isneginf(new_max), 0.0, new_max)))


def merge(a: Partial, b: Partial) -> Partial:
    """Combine attention over two disjoint sets of keys."""
    row_max = jnp.maximum(a.row_max, b.row_max)
    wa, wb = weight(a.row_max, row_max), weight(b.row_max, row_max)
    return Partial(a.out * wa[..., None] + b.out * wb[..., None], row_max, a.row_sum * wa + b.row_sum * wb)


def merge_stacked(parts: Partial) -> Partial:
    """Combine attention over disjoint sets of keys that are stacked along the first axis."""
    row_max = parts.row_max.max(axis=0)
    weights = weight(parts.row_max, row_max)
    return Partial((parts.out * weights[..., None]).sum(axis=0), row_max, (parts.row_sum * weights).sum(axis=0))


def finalize(partial: Partial) -> Array:
    """Return the attention output `[..., H]`; zeros for a query that saw no key, NaN for one that saw NaN."""
    seen = partial.row_sum != 0  # not > 0, which NaN is not: it would come out as zeros, and nobody would know
    return jnp.where(seen[..., None], partial.out / jnp.where(seen, partial.row_sum, 1.0)[..., None], 0.0)


def normalised(out: Array, level: Array) -> Partial:
    """Return the partial form of a finished attention: out `[..., H]`, level `[...]` as `level` gives it."""
    return Partial(out.astype(jnp.float32), level, jnp.where(jnp.isneginf(level), 0.0, 1.0))


def level(row_max: Array, row_sum: Array) -> Array:
    """Return the log of the sum of exp(logit) over all that a query saw, -inf where it saw nothing."""
    seen = row_sum != 0  # see `finalize`
    return jnp.where(seen, row_max + jnp.log(jnp.where(seen, row_sum, 1.0)), -jnp.inf)
