"""A whole run in one call: `psynth train` does it, and so does a notebook, whose process holds the accelerator.

config -> what can be wrong without the model -> examples -> model -> Trainer -> Outcome
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from psynth_jax.convert.adapters import find_adapter
from psynth_jax.convert.load import load_model
from psynth_jax.engine.compilation_cache import programs_kept_in
from psynth_jax.errors import ConfigError
from psynth_jax.model import Model
from psynth_jax.sharding import make_mesh, mesh_sizes
from psynth_jax.storage.paths import as_path, is_bucket
from psynth_jax.training.checkpoint import CheckpointReader
from psynth_jax.training.config import TrainConfig, with_schedule_steps
from psynth_jax.training.lock import working_in
from psynth_jax.training.programs import TrainingPrograms, read_shapes
from psynth_jax.training.reporter import OnStep
from psynth_jax.training.tasks import load_tasks
from psynth_jax.training.trainer import Outcome, Trainer, check_continues, silent

Say = Callable[[str], None]


def train(
    config: TrainConfig,
    model: Model | Callable[[], Model] | None = None,
    on_step: OnStep | None = None,
    say: Say = silent,
    end_process: Callable[[int], object] | None = None,
    processes: int = 1,
) -> Outcome:
    """Run a config in this process, or go on where its workdir stands.

    Args:
      config: what to do; see `read_config`.
      model: the one that the config names, on the devices of its mesh; or a function that loads it, called when the
        examples have been read.  None: it is loaded here.
      on_step: called with the numbers of each step and of each evaluation, in the first process.
      say: told, in a few words, what takes longer than a step, where a run is continued, and what is left out.
      end_process: see `Trainer.run`.
      processes: that make generated examples; see `synthetic_examples`.

    Raises:
      TrainingError: the loss is no number, the workdir cannot be written, or another run works there.
      ConfigError: config, model and checkpoint disagree.
      MemoryLimitError: a device has not enough memory for a step.
      And what `prepare` raises.
    """
    with working_in(config.workdir, say) as hold, _programs_kept(config.workdir):
        trainer = prepare(config, model, on_step, say, processes=processes)
        if trainer.step:
            say(f"continuing {config.workdir} after step {trainer.step}")
        for task, reasons in trainer.dropped.items():
            for reason, count in reasons.items():
                say(f"{task}: {count} examples are left out: they have {reason}")
        return trainer.run(hold=hold, end_process=end_process)


@contextlib.contextmanager
def _programs_kept(workdir: str) -> Iterator[None]:
    """Keep compiled programs with the run where its hosts come and go: the next ones compile nothing again."""
    chosen = "JAX_COMPILATION_CACHE_DIR" in os.environ
    if chosen or not (is_bucket(workdir) or jax.process_count() > 1):
        yield
        return
    with programs_kept_in(as_path(workdir) / "compiled"):
        yield


def prepare(
    config: TrainConfig,
    model: Model | Callable[[], Model] | None = None,
    on_step: OnStep | None = None,
    say: Say = silent,
    checkpoint: str = "latest",
    processes: int = 1,
) -> Trainer:
    """Read all that a run needs; arguments as for `train`, and `checkpoint` as for `Trainer`.

    Raises:
      InputError, AdapterError: an adapter to begin from, or a teacher, is not there.
      And what `load_tasks`, `load_model` and `Trainer` raise.
    """
    about = _check_without_model(config, checkpoint)
    known = read_shapes(as_path(config.workdir)) if config.compile_ahead else None
    say("reading examples ...")
    if known is None:
        data, evaluation = load_tasks(config, processes)
        model = _loaded(config, model, say)
        return Trainer(config, model, data, evaluation, on_step, say, checkpoint)
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(load_tasks, config, processes)
        model = _loaded(config, model, say)
        programs = TrainingPrograms(with_schedule_steps(config, about), model, known.tasks, say)
        programs.compile_ahead(known.keys)
        try:
            data, evaluation = reading.result()
        except BaseException:
            programs.close()
            raise
    return Trainer(config, model, data, evaluation, on_step, say, checkpoint, programs)


def _loaded(config: TrainConfig, model: Model | Callable[[], Model] | None, say: Say) -> Model:
    """Return the model on its devices."""
    if model is None:
        say(f"loading {config.model} ...")
        mesh = None if config.mesh is None else make_mesh(config.mesh)
        model = load_model(config.model, config.dtype, mesh, layers="stacked")
    elif not isinstance(model, Model):
        model = model()
    _check_model(config, model)
    return model


def _check_without_model(config: TrainConfig, checkpoint: str) -> Mapping[str, Any] | None:
    """Find what needs no model, which takes long to load: damaged checkpoints, wrong names.

    Returns the config that a checkpoint began with; None: there is no checkpoint.
    """
    reader = CheckpointReader(config.workdir)
    before: Mapping[str, Any] | None = None
    if reader.latest is not None or checkpoint != "latest":
        about = reader.about(reader.find(checkpoint))
        check_continues(config, about)
        before = about["config"]
    for source in (config.trainable.start, config.teacher):
        if source is not None:
            find_adapter(source)
    return before


def _check_model(config: TrainConfig, model: Model) -> None:
    """Raise `ConfigError` for a model that lies otherwise than the config says, which is what the run writes down."""
    dtype = model.decoder.dtype.name
    if dtype != config.dtype:
        raise ConfigError(f"the model is in {dtype}, and the config says {config.dtype}: load it in that dtype")
    wanted = None if config.mesh is None else mesh_sizes(config.mesh)
    lies = None if model.mesh is None else dict(model.mesh.shape)
    if lies != wanted:
        raise ConfigError(f"the model's mesh is {lies}, and the config says {config.mesh}: load it on that mesh")
