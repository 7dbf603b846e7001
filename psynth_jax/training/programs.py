"""The steps of a run by name and by the shape of a batch, as calls of its compiled programs.

    WORKDIR/shapes.json    what the batches of the last start looked like: the next one compiles
                           for them while its examples are read

Knows no example: a program depends on the model, on the config, and on shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from psynth_jax.engine.programs import ProgramCall, Programs
from psynth_jax.errors import ConfigError
from psynth_jax.files import write_text
from psynth_jax.model import Model
from psynth_jax.sharding import BRANCH, put, shards
from psynth_jax.storage.paths import AnyPath
from psynth_jax.training.batch import QUESTION_AXES, Batch, batch_shardings, empty_batch, place
from psynth_jax.training.config import TrainConfig
from psynth_jax.training.optimizer import make_optimizer
from psynth_jax.training.parameters import initial_parameters, teacher_of
from psynth_jax.training.plain_values import read_json
from psynth_jax.training.plan import Shape
from psynth_jax.training.step import (
    EVALUATE,
    TRAIN,
    Parameters,
    StepOptions,
    TrainState,
    parameter_shardings_of,
    state_shardings,
)

SHAPES = "shapes.json"
Name: TypeAlias = Literal["train", "evaluate"]
Say: TypeAlias = Callable[[str], None]


class Key(NamedTuple):
    """A program: what it does, and the padded sizes of its batches."""

    name: Name
    shape: Shape


class TrainingPrograms:
    """The steps of a run, compiled when they run or ahead of that.

    options: static options of the steps.  teacher, taught_by: its LoRA and the digest of that.
    sharded: how the state lies on the mesh; None without one.
    """

    def __init__(self, config: TrainConfig, model: Model, tasks: int, say: Say):
        """Prepare; nothing is compiled yet.

        Args:
          config: of the run, with the length of its schedule.
          tasks: how many the examples are of.
          say: told what is compiled, which takes long.

        Raises `ConfigError` for separate layers, and for an adapter to begin from, or a teacher, that does not fit.
        """
        if not model.decoder.layers_are_stacked:
            raise ConfigError('training needs stacked layers: load the model with load_model(..., layers="stacked")')
        schedule_steps = config.optimizer.schedule_steps
        assert schedule_steps is not None
        self._config, self._model = config, model
        self.options = StepOptions(
            lora_scale=config.trainable.alpha / max(config.trainable.rank, 1),
            tasks=tasks,
            average=config.optimizer.average,
            remat=config.remat,
            loss_rows=config.loss_rows,
            implementation=config.implementation,
        )
        self.teacher, self.taught_by = teacher_of(config, model)
        self.sharded: TrainState | None = None
        self._optimizer = make_optimizer(config.optimizer, schedule_steps)
        self._programs = Programs(model.decoder, say)
        self._first: TrainState | None = self._fresh_state()
        self._abstract_state = jax.tree.map(_abstract, self._first)
        self._abstract_batches: dict[Shape, Any] = {}

    def first_state(self) -> TrainState:
        """Return the state of step 0; it is made once, since the first step takes its memory."""
        state, self._first = self._first, None
        return self._fresh_state() if state is None else state

    def _fresh_state(self) -> TrainState:
        config, mesh = self._config, self._model.mesh
        parameters = initial_parameters(config.trainable, self._model, config.seed)
        averages = config.optimizer.average > 0

        def begin(parameters: Parameters) -> TrainState:
            average = jax.tree.map(jnp.array, parameters) if averages else None
            return TrainState(jnp.int32(0), parameters, self._optimizer.init(parameters), average)

        if mesh is None:
            return jax.jit(begin)(parameters)
        sharded = parameter_shardings_of(parameters, self._model.decoder, mesh)
        self.sharded = state_shardings(jax.eval_shape(begin, parameters), sharded, mesh)
        return jax.jit(begin, out_shardings=self.sharded)(jax.tree.map(put, parameters, sharded))

    @property
    def waited(self) -> float:
        """Seconds for which this thread compiled, or waited for another that did."""
        return self._programs.waited

    def is_there(self, name: Name, shape: Shape) -> bool:
        """Whether a step has been compiled, so that it can run at once."""
        return self._programs.is_there(self._abstract_call(Key(name, shape)))

    def compile_ahead(self, wanted: Collection[Key]) -> None:
        """Begin to compile all that is not there, at the same time, in threads."""
        self._programs.compile_ahead([self._abstract_call(key) for key in wanted])

    def train(self, state: TrainState, shape: Shape, batch: Batch) -> tuple[TrainState, Any]:
        """Do a step on a batch of host arrays; return the new state, which replaces the old, and sums.

        Raises `MemoryLimitError` where a device has not enough memory.
        """
        placed = place(batch, self._model.mesh)
        return self._programs.run(self._call(Key("train", shape), state, placed))

    def evaluate(self, parameters: Parameters, shape: Shape, batch: Batch) -> Any:
        """Return the sums of a batch of host arrays.  Raises as `train` does."""
        placed = place(batch, self._model.mesh)
        return self._programs.run(self._call(Key("evaluate", shape), parameters, placed))

    def close(self) -> None:
        """Begin nothing more: what has not begun is compiled when it is asked for."""
        self._programs.close()

    def _call(self, key: Key, first: Any, batch: Any) -> ProgramCall:
        """Return the call of a step.  first: what it changes, or reads of that."""
        words = f"the {key.name} step for {_in_words(key.shape)}"
        args = first, batch, self.teacher
        if key.name == "evaluate":
            return ProgramCall(EVALUATE, args, {"options": self.options}, words)
        static = {"optimizer": self._optimizer, "options": self.options}
        return ProgramCall(TRAIN, args, static, words)

    def _abstract_call(self, key: Key) -> ProgramCall:
        """Return the call of a step with shapes of what it changes and of its batch."""
        if key.shape not in self._abstract_batches:
            self._abstract_batches[key.shape] = self._abstract_batch(key.shape)
        state, batch = self._abstract_state, self._abstract_batches[key.shape]
        return self._call(key, state if key.name == "train" else state.parameters, batch)

    def _abstract_batch(self, shape: Shape) -> Any:
        mesh = self._model.mesh
        pieces, blocks = shards(mesh, QUESTION_AXES), shards(mesh, (BRANCH,))
        batch = empty_batch(shape, self._config.batch.accumulate, pieces, blocks)
        if mesh is None:
            return jax.tree.map(_abstract, batch)
        return jax.tree.map(_abstract, batch, batch_shardings(batch, mesh))


def _abstract(array: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
    if sharding is None and isinstance(getattr(array, "sharding", None), jax.sharding.NamedSharding):
        sharding = array.sharding
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _in_words(shape: Shape) -> str:
    """Say what a batch is padded to, for people."""
    branches = f", {shape.rows} branches of up to {shape.slots} tokens" if shape.rows else ""
    return f"{shape.examples} examples of up to {shape.tokens} tokens{branches}"


class KnownShapes(NamedTuple):
    """What `SHAPES` says: how many tasks there were, and the programs that their batches took."""

    tasks: int
    keys: tuple[Key, ...]


def write_shapes(workdir: AnyPath, known: KnownShapes) -> None:
    """Write WORKDIR/shapes.json.  Raises `OSError`."""
    listed = [{"program": key.name, **key.shape._asdict()} for key in known.keys]
    write_text(workdir / SHAPES, json.dumps({"tasks": known.tasks, "shapes": listed}, indent=1) + "\n")


def read_shapes(workdir: AnyPath) -> KnownShapes | None:
    """Return what WORKDIR/shapes.json says; None: it is not there, or says nothing that can be used."""
    try:
        values = read_json(workdir / SHAPES)
        keys = tuple(_key(each) for each in values["shapes"])
        tasks = values["tasks"]
    except (ConfigError, KeyError, TypeError, ValueError):
        return None
    return KnownShapes(tasks, keys) if type(tasks) is int and tasks > 0 else None


def _key(value: dict[str, Any]) -> Key:
    name = value["program"]
    if name not in ("train", "evaluate"):
        raise ValueError(name)
    sizes: Sequence[int] = [value[field] for field in Shape._fields]
    if any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(sizes)
    return Key(name, Shape(*sizes))
