"""One training step: encode the branches with the base, read them with the synthesizer, change mapper and adapter.

    branches [X, Z]          -> base, no gradient -> cache of R rows, one branch each
    prompts, targets [X, Z'] -> base + adapter, over that cache folded with the mapper -> hidden at the targets -> loss
    pasted texts [X, Z"]     -> teacher, no gradient -> hidden at the targets               (only to distil from it)

The base's weights are constants; the teacher is the base, or the base with a LoRA that was trained on pasted texts.  The
loss is a mean over all target tokens of the step, over all devices and micro-batches.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from psynth_jax.axes import Array
from psynth_jax.cache import cache_spec, packed_here, placement_on
from psynth_jax.engine.programs import Program
from psynth_jax.mapper import Mapper
from psynth_jax.nn.adapter import Lora
from psynth_jax.nn.conditioning import fold
from psynth_jax.nn.decoder import Decoder
from psynth_jax.nn.ragged import RaggedRows
from psynth_jax.ops.branch_attention import Context, ContextPart, Implementation, Runs
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.sharding import replicated, shards
from psynth_jax.training.batch import BRANCH_ROW_AXES, QUESTION_AXES, Batch, BranchRows, Fed
from psynth_jax.training.loss import target_losses


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parameters:
    """What is trained.  mapper None: the identity.  down, up: factors of the adapter as in `Lora`; empty: no adapter."""

    mapper: Mapper | None
    down: dict[str, Array]
    up: dict[str, Array]

    def lora(self, scale: float) -> Lora | None:
        """Return the adapter."""
        return Lora(self.down, self.up, jnp.float32(scale)) if self.down else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.  step: how many have been done.  average: of the parameters, or None."""

    step: Array
    parameters: Parameters
    optimizer: Any
    average: Parameters | None


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What a step does besides its arrays; static.

    lora_scale: alpha / rank.  tasks: how many.  average: decay of the weight average, 0 for none.  loss_rows: positions of
    one shard whose logits exist at once.  packed: layout of the branches' cache; None: what suits the default device.
    """

    lora_scale: float
    tasks: int
    average: float = 0.0
    remat: bool = True
    loss_rows: int = 256
    implementation: Implementation = "auto"
    packed: bool | None = None


def _run(
    model: Decoder, fed: Fed | BranchRows, row_axes: tuple[str, ...], options: StepOptions, **more: Any
) -> tuple[Array, Array, Array]:
    """Run lists of rows from their first token; return hidden states `[X, Z, D]`, keys and values `[L, R, S, K, H]`."""
    position, rows = jnp.zeros_like(fed.count), RaggedRows(fed.first, fed.count, fed.slots)
    options_of_call = {"rows": rows, "implementation": options.implementation, "position": position, **more}
    if options_of_call.get("context") is None:
        options_of_call["reach"] = fed.slots
    axes = row_axes if model.mesh is not None else ()
    return model(fed.tokens, row_axes=axes, **options_of_call)


def _branches_read(model: Decoder, rows: BranchRows, options: StepOptions) -> ContextPart:
    """Encode branches with the base; return their cache, a row each, and which slots each example reads."""
    _, k, v = _run(model, rows, BRANCH_ROW_AXES, options)
    axes = BRANCH_ROW_AXES if model.mesh is not None else ()
    placement = placement_on(model.mesh, model.config.kv_heads, axes)
    packed = packed_here(model.config.head_width) if options.packed is None else options.packed
    heads = CachedHeads.holding(k, v, packed=packed, placement=placement)
    if model.mesh is not None:
        heads = jax.lax.with_sharding_constraint(heads, NamedSharding(model.mesh, cache_spec(placement)))
    number = jnp.broadcast_to(jnp.arange(rows.row.shape[-1]), rows.row.shape)
    used = jnp.where(rows.kept > 0, number + 1, 0).max(axis=-1)
    runs = Runs(rows.row, rows.prefix, rows.kept, number, jnp.zeros_like(rows.row), used)
    return ContextPart(jax.lax.stop_gradient(heads), runs)


def _at_targets(model: Decoder, fed: Fed, options: StepOptions, **more: Any) -> Array:
    """Run what the synthesizer or its teacher is fed; return hidden states where targets are predicted, `[B, M, D]`."""
    hidden, _, _ = _run(model, fed, QUESTION_AXES, options, **more)
    pieces, _, width = hidden.shape
    found = jnp.take_along_axis(hidden, fed.at.reshape(pieces, -1, 1), axis=1)
    return found.reshape(*fed.at.shape, width)


def losses(
    parameters: Parameters, model: Decoder, batch: Batch, options: StepOptions, teacher: Lora | None = None
) -> tuple[Array, dict[str, Array]]:
    """Return the sum of the weighted objectives over a micro-batch, and sums for the metrics.

    teacher: what the teacher has besides the base.  The sums: target tokens, both objectives, and per task `[tasks]` tokens
    and cross-entropy.
    """
    position, context = jnp.zeros_like(batch.student.count), None
    if batch.branches is not None:
        rows = batch.branches
        position = rows.kept.max(axis=-1)
        folded = fold(parameters.mapper, rows.prefix, rows.kept, rows.kept > 0, model.config)
        context = Context((_branches_read(model, rows, options),), *folded, position)
    learned = _at_targets(
        model,
        batch.student,
        options,
        position=position,
        context=context,
        lora=parameters.lora(options.lora_scale),
        remat=options.remat,
    )
    taught = None
    if batch.teacher is not None:
        taught = jax.lax.stop_gradient(_at_targets(model, batch.teacher, options, lora=teacher))
    chunk = max(1, options.loss_rows * shards(model.mesh, QUESTION_AXES) // batch.target.shape[0])
    found = target_losses(model.logits, learned, taught, batch.target, batch.weight, chunk)
    total = batch.cross_entropy[:, None] * found.cross_entropy + batch.distillation[:, None] * found.distillation
    of_task = jax.nn.one_hot(batch.task, options.tasks, dtype=jnp.float32)
    sums = {
        "tokens": batch.weight.sum(),
        "loss": total.sum(),
        "cross_entropy": found.cross_entropy.sum(),
        "distillation": found.distillation.sum(),
        "task_tokens": batch.weight.sum(axis=1) @ of_task,
        "task_cross_entropy": found.cross_entropy.sum(axis=1) @ of_task,
    }
    return total.sum(), sums


def _micro_batch(batch: Batch, number: int | Array) -> Batch:
    return jax.tree.map(lambda x: x[number], batch)


def gradients(
    parameters: Parameters, model: Decoder, batch: Batch, options: StepOptions, teacher: Lora | None = None
) -> tuple[Parameters, dict[str, Array]]:
    """Return the gradient of the mean loss over all target tokens of all micro-batches, and the sums."""
    count = batch.task.shape[0]

    def of_one(number: int | Array) -> tuple[Parameters, dict[str, Array]]:
        return jax.grad(losses, has_aux=True)(parameters, model, _micro_batch(batch, number), options, teacher)

    found = of_one(0)
    if count > 1:
        found = jax.lax.fori_loop(
            1,
            count,
            lambda i, so_far: jax.tree.map(jnp.add, so_far, of_one(i)),
            found,
        )
    gradient, sums = found
    tokens = jnp.maximum(sums["tokens"], 1.0)
    return jax.tree.map(lambda x: x / tokens, gradient), sums


def train_step(
    model: Decoder,
    state: TrainState,
    batch: Batch,
    teacher: Lora | None,
    *,
    optimizer: optax.GradientTransformation,
    options: StepOptions,
) -> tuple[TrainState, dict[str, Array]]:
    """Change the parameters once; return the new state and the step's sums, with `gradient_norm` and `finite`.

    Where loss or gradient is no number, `finite` is false and the parameters stay as they were.
    """
    gradient, sums = gradients(state.parameters, model, batch, options, teacher)
    norm = optax.tree.norm(gradient)
    updates, changed = optimizer.update(gradient, state.optimizer, state.parameters)
    parameters = optax.apply_updates(state.parameters, updates)
    average = state.average
    if average is not None:
        decay = options.average
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, parameters)
    fresh = TrainState(state.step + 1, parameters, changed, average)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums["loss"])
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), fresh, state)
    return kept, sums | {"gradient_norm": norm, "finite": finite}


def evaluate_step(
    model: Decoder,
    parameters: Parameters,
    batch: Batch,
    teacher: Lora | None,
    *,
    options: StepOptions,
) -> dict[str, Array]:
    """Return the sums of a batch."""
    found = []
    for number in range(batch.task.shape[0]):
        _, sums = losses(parameters, model, _micro_batch(batch, number), options, teacher)
        found.append(sums)
    return jax.tree.map(lambda *parts: sum(parts), *found)


def state_shardings(state: TrainState, parameters: Parameters, mesh: Mesh) -> TrainState:
    """Return how a state is cut: everything that has the shape of a parameter as that parameter, all else whole."""
    whole = replicated(mesh)

    def like_parameters(tree: Any) -> Any:
        return jax.tree.map(
            lambda part: parameters if isinstance(part, Parameters) else whole,
            tree,
            is_leaf=lambda part: isinstance(part, Parameters),
        )

    return TrainState(whole, parameters, like_parameters(state.optimizer), None if state.average is None else parameters)


def parameter_shardings_of(parameters: Parameters, model: Decoder, mesh: Mesh) -> Parameters:
    """Return how mapper (whole everywhere) and adapter (as the weights that it goes with) are cut."""
    mapper = jax.tree.map(lambda _: replicated(mesh), parameters.mapper)
    lora = parameters.lora(1.0)
    if lora is None:
        return Parameters(mapper, {}, {})
    cut = lora.shardings(mesh, model.config)
    return Parameters(mapper, cut.down, cut.up)


def _state_and_sums(model: Decoder, state: TrainState, *rest: Any, **static: Any) -> Any:
    """Return `out_shardings`: the state where the old one lies, the sums whole on each device."""
    assert model.mesh is not None
    return jax.tree.map(lambda x: x.sharding, state), replicated(model.mesh)


def _sums(model: Decoder, *rest: Any, **static: Any) -> Any:
    assert model.mesh is not None
    return replicated(model.mesh)


_LESS = "a lower batch.tokens or loss_rows, remat=true, dtype bfloat16, or a larger mesh"
TRAIN = Program(
    train_step,
    static=("optimizer", "options"),
    donated=("state",),
    out_shardings=_state_and_sums,
    less_memory=_LESS,
)
EVALUATE = Program(
    evaluate_step,
    static=("options",),
    out_shardings=_sums,
    less_memory=_LESS,
)
