"""The compiled steps of a run, by name and by the shape of a batch; several are compiled at the same time.

    WORKDIR/shapes.json    what the batches of the last start looked like: the next one compiles
                           for them while its examples are read

Knows no example: a program depends on the model, on the config, and on shapes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from psynth_jax.errors import ConfigError
from psynth_jax.files import write_text
from psynth_jax.model import Model
from psynth_jax.sharding import BRANCH, put, replicated, shards
from psynth_jax.storage.paths import AnyPath
from psynth_jax.training.batch import QUESTION_AXES, batch_shardings, empty_batch
from psynth_jax.training.config import TrainConfig
from psynth_jax.training.optimizer import make_optimizer
from psynth_jax.training.parameters import initial_parameters, teacher_of
from psynth_jax.training.plain_values import read_json
from psynth_jax.training.plan import Shape
from psynth_jax.training.step import (
    Parameters,
    StepOptions,
    TrainState,
    evaluate_step,
    parameter_shardings_of,
    state_shardings,
    train_step,
)

SHAPES = "shapes.json"
Name: TypeAlias = Literal["train", "evaluate"]
Program: TypeAlias = Callable[..., Any]
Say: TypeAlias = Callable[[str], None]


class Key(NamedTuple):
    """A program: what it does, and the padded sizes of its batches."""

    name: Name
    shape: Shape


class Programs:
    """The steps of a run, compiled when they are asked for or ahead of that.

    options: static options of the steps.  teacher, taught_by: its LoRA and the digest of that.
    sharded: how the state lies on the mesh; None without one.
    """

    def __init__(self, config: TrainConfig, model: Model, tasks: int, say: Say):
        """Prepare; nothing is compiled yet.

        Args:
          config: of the run, with the length of its schedule.
          tasks: how many the examples are of.
          say: told what is compiled, which takes long.

        Raises `ConfigError` for an adapter to begin from, or a teacher, that does not fit.
        """
        schedule_steps = config.optimizer.schedule_steps
        assert schedule_steps is not None
        self._config, self._model, self._say = config, model, say
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
        self._compiled: dict[Key, Future[Program]] = {}
        self._threads = ThreadPoolExecutor(os.cpu_count())
        self._first: TrainState | None = self._fresh_state()
        self._described = jax.tree.map(_described, self._first)

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

    def is_there(self, name: Name, shape: Shape) -> bool:
        """Whether a program has been compiled, so that it can run at once."""
        future = self._compiled.get(Key(name, shape))
        return future is not None and future.done() and not future.cancelled()

    def get(self, name: Name, shape: Shape) -> tuple[Program, float]:
        """Return a program, and for how many seconds it had to be waited for."""
        begin, key = time.perf_counter(), Key(name, shape)
        future = self._compiled.get(key)
        if future is None or future.cancelled():
            future = Future()
            future.set_result(self._compile(key))
            self._compiled[key] = future
        elif not future.done():
            self._say(f"waiting for the {name} step of {_in_words(shape)} to be compiled ...")
        else:
            return future.result(), 0.0
        return future.result(), time.perf_counter() - begin

    def compile_ahead(self, wanted: Collection[Key]) -> None:
        """Begin to compile all that is not there, at the same time, in threads."""
        for key in wanted:
            if key not in self._compiled:
                self._compiled[key] = self._threads.submit(self._compile, key)

    def close(self) -> None:
        """Begin nothing more: what has not begun is compiled when it is asked for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _compile(self, key: Key) -> Program:
        begin, words = time.perf_counter(), _in_words(key.shape)
        self._say(f"compiling the {key.name} step for {words} ...")
        options: dict[str, Any] = {}
        if key.name == "train":
            options["donate_argnums"] = 0
        mesh = self._model.mesh
        if mesh is not None:
            whole = replicated(mesh)
            options["out_shardings"] = (self.sharded, whole) if key.name == "train" else whole
        step = jax.jit(self._train if key.name == "train" else self._evaluate, **options)
        first = self._described if key.name == "train" else self._described.parameters
        program = step.lower(first, self._model.decoder, self.teacher, self._batch(key.shape)).compile()
        self._say(f"compiled the {key.name} step for {words} in {time.perf_counter() - begin:.1f} s")
        return program

    def _batch(self, shape: Shape) -> Any:
        """Return the arrays of a batch of a shape, described."""
        mesh = self._model.mesh
        pieces, blocks = shards(mesh, QUESTION_AXES), shards(mesh, (BRANCH,))
        batch = empty_batch(shape, self._config.batch.accumulate, pieces, blocks)
        if mesh is None:
            return jax.tree.map(_described, batch)
        return jax.tree.map(_described, batch, batch_shardings(batch, mesh))

    def _train(self, state: TrainState, model: Any, teacher: Any, batch: Any) -> Any:
        return train_step(state, model, batch, self._optimizer, self.options, teacher)

    def _evaluate(self, parameters: Parameters, model: Any, teacher: Any, batch: Any) -> Any:
        return evaluate_step(parameters, model, batch, self.options, teacher)


def _described(array: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
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
