"""How caches lie on devices: number formats, layout, and how they are sharded over a mesh."""

from __future__ import annotations

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from psynth_jax.ops.cached_heads import Placement, packs
from psynth_jax.sharding import TENSOR, kv_copies

CACHE_DTYPES = ("float32", "bfloat16", "float16", "int8")


def placement_on(mesh: Mesh | None, kv_heads: int, row_axes: tuple[str, ...]) -> Placement | None:
    """Return how a cache of `kv_heads` heads is sharded over a mesh, its rows over `row_axes`; None without a mesh."""
    return None if mesh is None else Placement(row_axes, TENSOR, kv_copies(kv_heads, mesh))


def cache_spec(placement: Placement | None) -> P:
    """Return the partition spec of every array of `CachedHeads` (they all begin with L, R, K)."""
    return P() if placement is None else P(None, placement.row_axes or None, placement.head_axis)


def packed_here(head_width: int) -> bool:
    """Whether caches of this head width are packed on the default device."""
    return packs(head_width) and jax.default_backend() == "tpu"
