"""A workload as a call of a program: the engine's own step, with shapes instead of arrays.

Nothing is allocated.  The program and its owner are those of `Engine`, and so are placement and
layouts; only the layout of a cache and the attention kernel are named, because the default device
here is not the one that is compiled for.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from psynth_jax.branches import BranchView, bucket
from psynth_jax.cache import KVCache, cache_shardings, placement_on
from psynth_jax.compiling.workload import Workload
from psynth_jax.config import DecoderConfig
from psynth_jax.engine.programs import ProgramCall, Programs
from psynth_jax.mapper import Mapper
from psynth_jax.nn.adapter import Lora
from psynth_jax.nn.decoder import Decoder, parameter_shapes, shardings_of
from psynth_jax.ops.branch_attention import ContextPart, Segments
from psynth_jax.ops.cached_heads import CachedHeads, packs
from psynth_jax.sharding import ROW_AXES, replicated
from psynth_jax.synthesis import step
from psynth_jax.synthesis.engine import chunk_sizes, slots_needed
from psynth_jax.synthesis.placement import plan_rows
from psynth_jax.synthesis.sampling import SamplingOptions, row_sampling
from psynth_jax.synthesis.step import Reader, Rows


@dataclasses.dataclass(frozen=True)
class AbstractCall:
    """A call to be compiled by `programs.get(call)`, and two caches, all of them shapes.

    own: the cache that is written.  read: the cache that most is read of.
    """

    programs: Programs
    call: ProgramCall
    own: CachedHeads
    read: CachedHeads

    @property
    def model(self) -> Decoder:
        """The weights."""
        return self.programs.model

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The weights and all other arrays."""
        return self.model, *self.call.args


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

    def cache(self, config: DecoderConfig, rows: int, slots: int, row_axes: tuple[str, ...], dtype: Any = None) -> KVCache:
        """Return a cache in the layout that TPUs get."""
        placement = placement_on(self.mesh, config.kv_heads, row_axes)
        assert placement is not None
        shape = (config.layers, rows, config.kv_heads * placement.copies, slots, config.head_width)
        packed = packs(config.head_width)
        heads = jax.eval_shape(lambda: CachedHeads.allocate(shape, dtype or self.dtype, packed=packed))
        cut: Any = cache_shardings(self.mesh, placement)
        on_mesh: Any = jax.tree.map(lambda x: self.array(*x.shape, dtype=x.dtype, sharding=cut.heads), heads)
        length = self.array(rows, dtype=jnp.int32, sharding=cut.length)
        return KVCache(dataclasses.replace(on_mesh, placement=placement), length)

    def view(self, read: CachedHeads, rows: int, branches: int) -> BranchView:
        """Return branches, a segment each, in one cache."""
        width = bucket(branches)
        part = ContextPart(read, Segments(*[self.ints(rows, width)] * 4))
        shift, span, valid = (self.array(rows, width, dtype=kind) for kind in (jnp.int32, jnp.int32, jnp.bool_))
        return BranchView((part,), shift, span, valid)


def inference_call(work: Workload, mesh: Mesh) -> AbstractCall:
    """Return the call of a workload on a mesh of its slice."""
    config, shapes = work.config, Shapes(mesh, work.dtype)
    model = shapes.decoder(config)
    plan = plan_rows([0] * work.branches, mesh)
    grown = slots_needed(0, 1, work.branch_tokens)
    if work.program == "workers":
        rows, tokens, fresh = plan.count, 1, False
        prompt = shapes.cache(config, 1, slots_needed(0, work.prompt_tokens, 0), (), work.cache_dtype)
        reader = Reader(view=shapes.view(prompt.heads, rows, 1))
        own = shapes.cache(config, rows, grown, ROW_AXES, work.cache_dtype)
        read = own.heads
    else:
        chunks = chunk_sizes(work.prompt_tokens)
        rows = 1
        tokens, fresh = (chunks[0], len(chunks) == 1) if work.program == "synthesize" else (1, False)
        read = shapes.cache(config, plan.count, grown, ROW_AXES, work.cache_dtype).heads
        mapper = shapes.like(jax.eval_shape(lambda: Mapper.initialise(jax.random.key(0))))
        reader = Reader(mapper, shapes.lora(config, work.rank), None, shapes.view(read, 1, work.branches))
        own = shapes.cache(config, 1, slots_needed(0, work.prompt_tokens, work.new_tokens), ())
    fed = Rows(shapes.ints(rows, tokens), *[shapes.ints(rows)] * 3)
    sampling = shapes.like(row_sampling(SamplingOptions(), [(0, 0)] * rows))
    arguments = reader, fed, own, shapes.array(rows, config.width), sampling, shapes.ints()
    static = {"fresh": fresh, "greedy": True, "implementation": "pallas_tpu"}
    words = f"{work.program} of {work.model} for {work.topology}"
    call = ProgramCall(step.ADVANCE, arguments, static, words)
    return AbstractCall(Programs(model), call, own.heads, read)


def bytes_on_a_device(tree: Any) -> int:
    """Return the bytes of abstract arrays that one device holds."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
