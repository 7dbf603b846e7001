"""A training step of a workload, with shapes: AdamW changes a mapper and an adapter."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from psynth_jax.buckets import bucket
from psynth_jax.compiling.program import AbstractCall, Shapes
from psynth_jax.compiling.workload import Workload
from psynth_jax.engine.programs import ProgramCall, Programs
from psynth_jax.mapper import Mapper
from psynth_jax.ops.cached_heads import packs
from psynth_jax.sharding import BRANCH, shards
from psynth_jax.training.batch import BRANCH_ROW_AXES, QUESTION_AXES, batch_shardings, empty_batch
from psynth_jax.training.config import Optimizer
from psynth_jax.training.optimizer import make_optimizer
from psynth_jax.training.plan import Shape, padded, row_slots
from psynth_jax.training.step import (
    TRAIN,
    Parameters,
    StepOptions,
    TrainState,
    parameter_shardings_of,
    state_shardings,
)

STEPS = 1000  # of the schedule, which changes no shape


def batch_shape(work: Workload, mesh: Mesh) -> Shape:
    """Return the shape of a batch of `work.questions` examples, all as long as the workload says."""
    parts, blocks = shards(mesh, QUESTION_AXES), shards(mesh, (BRANCH,))
    examples = -(-work.questions // parts) * parts
    rows, fed = examples // parts * work.branches, work.prompt_tokens + work.new_tokens - 1
    return Shape(
        examples=examples,
        rows=-(-rows // blocks) * blocks * parts,
        listed=-(-rows // blocks) * blocks * parts * work.branch_tokens,
        slots=row_slots(work.branch_tokens),
        width=bucket(work.branches),
        tokens=padded(fed),
        fed=examples * fed,
        targets=padded(work.new_tokens),
        teacher=0,
        taught=0,
    )


def training_call(work: Workload, mesh: Mesh) -> AbstractCall:
    """Return the call of a training step on a mesh of the workload's slice."""
    config, shapes, shape = work.config, Shapes(mesh, work.dtype), batch_shape(work, mesh)
    model = shapes.decoder(config)
    lora = shapes.lora(config, work.rank)
    mapper = shapes.like(jax.eval_shape(lambda: Mapper.initialise(jax.random.key(0))))
    parameters = Parameters(mapper, lora.down if lora else {}, lora.up if lora else {})
    optimizer = make_optimizer(Optimizer(), STEPS)

    def begin(parameters: Parameters) -> TrainState:
        return TrainState(jnp.int32(0), parameters, optimizer.init(parameters), None)

    state = jax.eval_shape(begin, parameters)
    cut = state_shardings(state, parameter_shardings_of(parameters, model, mesh), mesh)
    empty = empty_batch(shape, pieces=shards(mesh, QUESTION_AXES), blocks=shards(mesh, (BRANCH,)))

    def abstract(tree: Any, where: Any) -> Any:
        return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, where)

    def like_state(tree: TrainState) -> TrainState:
        # The shardings of the optimiser's parts are a prefix of its tree.
        flat = jax.tree.broadcast(cut, tree, is_leaf=lambda x: x is None)
        return abstract(tree, flat)

    arguments = like_state(state), abstract(empty, batch_shardings(empty, mesh)), None
    options = StepOptions(1.0, 1, implementation="pallas_tpu", packed=packs(config.head_width))
    static = {"optimizer": optimizer, "options": options}
    call = ProgramCall(TRAIN, arguments, static, f"train of {work.model} for {work.topology}")
    cache = shapes.heads(config, shape.rows, shape.slots, BRANCH_ROW_AXES)
    return AbstractCall(Programs(model), call, cache, shape.slots)
