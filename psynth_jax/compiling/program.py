"""A workload as a call of a program: the scheduler's own step, with shapes instead of arrays.

    pool   [L, R, K, S, H]   R = data * branch blocks, sharded there

    block  [ 1 | branch | pad ][ 1 | branch | pad ] ... [ prompt, answer | pad ]     synthesize, decode
           [ shared prompt | pad ][ 1 | worker | pad ][ 1 | worker | pad ] ...       workers

A branch is what a worker wrote behind at least one token of its own prompt, in whole pages.  Nothing is allocated.  The
program and its owner are those that run, and so are buckets, placement and layouts; only the layout of the pool and the
attention kernel are named, because the default device here is not the one that is compiled for.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from psynth_jax.cache import cache_spec, placement_on
from psynth_jax.compiling.workload import Workload
from psynth_jax.config import DecoderConfig
from psynth_jax.engine.batch_runner import STEP, most_rows
from psynth_jax.engine.machine import PAGE, buckets_of
from psynth_jax.engine.programs import ProgramCall, Programs
from psynth_jax.engine.step import Conditioning
from psynth_jax.engine.step_input import Layout
from psynth_jax.mapper import Mapper
from psynth_jax.nn.adapter import Lora
from psynth_jax.nn.decoder import Decoder, parameter_shapes, shardings_of
from psynth_jax.ops.cached_heads import CachedHeads, packs
from psynth_jax.sharding import BRANCH, DATA, ROW_AXES, replicated, shards


@dataclasses.dataclass(frozen=True)
class AbstractCall:
    """A call to be compiled by `programs.get(call)`, all its arguments shapes.

    cache: keys and values that most is read of: the pool; of a training step what it makes itself.
    branch_slots: how many of a block's slots hold branches.
    """

    programs: Programs
    call: ProgramCall
    cache: CachedHeads
    branch_slots: int

    @property
    def model(self) -> Decoder:
        """The weights."""
        return self.programs.model

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The weights and all other arrays."""
        return self.model, *self.call.args

    @property
    def cache_bytes(self) -> int:
        """The bytes of `cache` on one device."""
        return bytes_on_a_device(self.cache)

    @property
    def branch_bytes(self) -> int:
        """The bytes of the branches in `cache` on one device."""
        return self.cache_bytes * self.branch_slots // self.cache.slots


class Shapes:
    """Makes abstract arrays on a mesh."""

    def __init__(self, mesh: Mesh, dtype: str):
        self.mesh, self.dtype = mesh, jnp.dtype(dtype)
        self._whole = replicated(mesh)

    def array(self, *shape: int, dtype: Any = None, sharding: NamedSharding | None = None) -> Any:
        """Return one array, whole on every device unless a sharding is given."""
        return jax.ShapeDtypeStruct(shape, dtype or self.dtype, sharding=sharding or self._whole)

    def ints(self, *shape: int) -> Any:
        """Return int32 numbers."""
        return self.array(*shape, dtype=jnp.int32)

    def like(self, tree: Any) -> Any:
        """Return small arrays as shapes."""
        return jax.tree.map(lambda x: self.array(*jnp.shape(x), dtype=x.dtype), tree)

    def decoder(self, config: DecoderConfig) -> Decoder:
        """Return a model, cut over the mesh."""
        cut = shardings_of(config, self.mesh)
        parameters = {name: self.array(*shape, sharding=cut[name]) for name, shape in parameter_shapes(config).items()}
        return Decoder(config, parameters, self.mesh)

    def lora(self, config: DecoderConfig, rank: int) -> Lora | None:
        """Return an adapter on q, k, v and o, cut as the weights are."""
        if not rank:
            return None
        lora = jax.eval_shape(lambda: Lora.initialise(config, rank, rank, jax.random.key(0)))
        cut = lora.shardings(self.mesh, config)
        return jax.tree.map(lambda x, sharding: self.array(*x.shape, dtype=x.dtype, sharding=sharding), lora, cut)

    def heads(
        self, config: DecoderConfig, rows: int, slots: int, row_axes: tuple[str, ...], dtype: Any = None
    ) -> CachedHeads:
        """Return keys and values `[L, rows, K, slots, H]` in the layout that TPUs get."""
        placement = placement_on(self.mesh, config.kv_heads, row_axes)
        assert placement is not None
        shape = (config.layers, rows, config.kv_heads * placement.copies, slots, config.head_width)
        packed = packs(config.head_width)
        heads = jax.eval_shape(lambda: CachedHeads.allocate(shape, dtype or self.dtype, packed=packed))
        cut = NamedSharding(self.mesh, cache_spec(placement))
        on_mesh: Any = jax.tree.map(lambda x: self.array(*x.shape, dtype=x.dtype, sharding=cut), heads)
        return dataclasses.replace(on_mesh, placement=placement)


def inference_call(work: Workload, mesh: Mesh) -> AbstractCall:
    """Return the first call of a workload on a mesh of its slice."""
    config, shapes = work.config, Shapes(mesh, work.dtype)
    is_workers = work.program == "workers"
    branch_slots, other_slots = slots_of_a_block(work, mesh)
    pool = shapes.heads(config, shards(mesh, ROW_AXES), branch_slots + other_slots, ROW_AXES, work.cache_dtype)

    layout = layout_of(work)
    rows, tokens = work.calls(mesh)[0]
    before = shapes.ints(most_rows(buckets_of("tpu"), mesh))
    array = shapes.ints(rows, layout.width + 2 * tokens)
    conditioning = Conditioning()
    if not is_workers:
        mapper = shapes.like(jax.eval_shape(lambda: Mapper.initialise(jax.random.key(0))))
        conditioning = Conditioning(mapper, shapes.lora(config, work.rank))

    # As `Scheduler` finds it: a row that reads no other block than its own is sharded over branch, too.
    reads_its_block_only = is_workers or min(mesh.shape[BRANCH], work.branches) == 1
    row_axes = ROW_AXES if reads_its_block_only else (DATA,)
    static = {"layout": layout, "row_axes": row_axes, "implementation": "pallas_tpu"}
    words = f"{work.program} of {work.model} for {work.topology}"
    call = ProgramCall(STEP, (conditioning, pool, before, array), static, words)
    return AbstractCall(Programs(shapes.decoder(config)), call, pool, branch_slots)


def slots_of_a_block(work: Workload, mesh: Mesh) -> tuple[int, int]:
    """Return how many slots of a block branches take, and all else that the workload needs, in whole pages.

    Branches are dealt over `branch`; the fullest block counts.
    """
    on_a_block = -(-work.branches // mesh.shape[BRANCH])
    branch_slots = on_a_block * _whole_pages(1 + work.branch_tokens)
    if work.program == "workers":
        return branch_slots, _whole_pages(work.prompt_tokens)
    return branch_slots, _whole_pages(work.prompt_tokens + work.new_tokens)


def layout_of(work: Workload) -> Layout:
    """Return the columns of a row of the step's input: workers read a shared prompt, others a run of every branch."""
    buckets = buckets_of("tpu")
    read = 0 if work.program == "workers" else work.branches
    branches = buckets.branches_of(read)
    return Layout(branches, buckets.runs_of(branches, read + 2))  # and a shared prompt, and own tokens


def _whole_pages(slots: int) -> int:
    return -(-slots // PAGE) * PAGE


def bytes_on_a_device(tree: Any) -> int:
    """Return the bytes of abstract arrays that one device holds."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
