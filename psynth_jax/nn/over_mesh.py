"""What XLA would cut badly by itself, cut by hand over a mesh: attention to caches, and writing to them.

    rows of queries   over the row axes of the own cache: nothing, data (questions) or data and branch (workers)
    heads             over tensor
    cached rows       over the row axes of each part: a device attends to the runs whose row it holds, and to no others

Devices that hold the same queries and different cached rows merge their partial results, `[B, T, N, H + 2]` float32 a
layer.  Any placement of rows is right as long as every row that a query reads lies on one of those devices: where questions
are cut over `data`, each finds its rows on its own part of the mesh (the caller sees to it, and leaves questions uncut where
they do not), and `branch` may hold them in any order.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from psynth_jax.axes import Array, KeysOrValues, Queries
from psynth_jax.cache import cache_spec
from psynth_jax.kv.pool import Places, write_tokens
from psynth_jax.ops.branch_attention import (
    Context,
    ContextPart,
    Implementation,
    branch_attention,
    branch_attention_partial,
)
from psynth_jax.ops.cached_heads import CachedHeads, Placement
from psynth_jax.ops.partial import Partial, finalize, merge_stacked, weight
from psynth_jax.sharding import ROW_AXES, block_index, shards

GATHERED_BYTES = 1 << 20  # the most that a device receives to merge partial results in one step


def attend(
    mesh: Mesh,
    placement: Placement,
    q: Queries,
    k: KeysOrValues,
    v: KeysOrValues,
    context: Context | None,
    layer: Array | int,
    scale: float,
    implementation: Implementation,
    window: Array | None,
) -> Queries:
    """Run `branch_attention` over a mesh; k and v have the cache's heads, copies included.

    Args:
      placement: of the own cache, whether it is read or not: rows of q, k, v and runs are sharded as its rows are.
    """
    rows, heads = placement.row_axes or None, P(placement.row_axes or None, None, placement.head_axis)
    merged = merge_axes(mesh, placement, context)

    def local(
        q: Array,
        k: Array,
        v: Array,
        context: Context | None,
        layer: Array,
        window: Array | None,
    ) -> Array:
        if not merged:  # every device has all that its queries read
            held = None if context is None else _held(context, mesh, ())
            return branch_attention(q, k, v, held, layer, scale, implementation, window)
        mine = block_index(mesh, merged) == 0
        held = None if context is None else _held(context, mesh, merged)
        seen = branch_attention_partial(q, k, v, held, layer, scale, implementation, mine, window)
        return finalize(merge_over(seen, mesh, merged)).astype(q.dtype)

    over = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(heads, heads, heads, _context_specs(context, rows), P(), P()),
        out_specs=heads,
        check_vma=False,
    )
    return over(q, k, v, context, jnp.asarray(layer, jnp.int32), window)


def merge_axes(mesh: Mesh, placement: Placement, context: Context | None) -> tuple[str, ...]:
    """Return the mesh axes over which devices hold the same queries, but different rows of the context."""
    parts = () if context is None else context.parts
    cut = {axis for part in parts if part.heads.placement is not None for axis in part.heads.placement.row_axes}
    return tuple(axis for axis in ROW_AXES if axis in cut and axis not in placement.row_axes and mesh.shape[axis] > 1)


def merge_over(seen: Partial, mesh: Mesh, axes: tuple[str, ...]) -> Partial:
    """Merge the partial results of all devices along some mesh axes.

    One gather while it is small, as in decoding, where latency is all that counts.  Larger ones would grow with the number
    of devices: then the maximum is agreed upon first, and what is relative to it is summed.
    """
    packed = jnp.concatenate([seen.out, seen.row_sum[..., None]], axis=-1)
    if shards(mesh, axes) * packed.nbytes <= GATHERED_BYTES:
        gathered = jax.lax.all_gather(jnp.concatenate([packed, seen.row_max[..., None]], axis=-1), axes)
        return merge_stacked(Partial(gathered[..., :-2], gathered[..., -1], gathered[..., -2]))
    # The result does not depend on what it is relative to, so no gradient goes that way.
    row_max = jax.lax.pmax(jax.lax.stop_gradient(seen.row_max), axes)
    total = jax.lax.psum(weight(seen.row_max, row_max)[..., None] * packed, axes)
    return Partial(total[..., :-1], row_max, total[..., -1])


def _held(context: Context, mesh: Mesh, merged: tuple[str, ...]) -> Context:
    """Keep the runs whose rows this device holds; where several hold a row, those of the first of them."""

    def part_held(part: ContextPart) -> ContextPart:
        placement = part.heads.placement
        row_axes = () if placement is None else placement.row_axes
        runs = part.runs
        row = runs.row - block_index(mesh, row_axes) * part.heads.rows
        held = (row >= 0) & (row < part.heads.rows)
        held &= block_index(mesh, tuple(axis for axis in merged if axis not in row_axes)) == 0
        length = jnp.where(held, runs.length, 0)
        return ContextPart(part.heads, dataclasses.replace(runs, row=jnp.where(held, row, 0), length=length))

    return dataclasses.replace(context, parts=tuple(part_held(part) for part in context.parts))


def _context_specs(context: Context | None, rows: tuple[str, ...] | None) -> Context | None:
    if context is None:
        return None
    parts = tuple(ContextPart(cache_spec(part.heads.placement), P(rows)) for part in context.parts)  # type: ignore[arg-type]
    return Context(parts, P(rows), P(rows), P(None, rows), P(rows))


def write(mesh: Mesh, heads: CachedHeads, k: Array, v: Array, places: Places, row_axes: tuple[str, ...]) -> CachedHeads:
    """Run `write_tokens` over a mesh: every device writes to the block of the pool that it holds.

    row_axes: mesh axes that the rows of k, v and places are sharded over.
    """
    placement = heads.placement
    assert placement is not None
    new, rows = P(None, row_axes or None, None, placement.head_axis), P(row_axes or None)

    def local(heads: CachedHeads, k: Array, v: Array, places: Places) -> CachedHeads:
        block = places.block - block_index(mesh, placement.row_axes) * heads.rows
        held = (block >= 0) & (block < heads.rows)
        # Beyond the end, and still another slot for every token.
        elsewhere = places.slots + heads.slots
        slots = jnp.where(held[:, None], places.slots, elsewhere)
        return write_tokens(heads, k, v, Places(jnp.where(held, block, 0), slots))

    spec = cache_spec(placement)
    over = jax.shard_map(local, mesh=mesh, in_specs=(spec, new, new, Places(rows, rows)), out_specs=spec, check_vma=False)
    return over(heads, k, v, places)
