"""A run from its config to its adapter: plan, step, measure, save; whatever stops it, the next start goes on.

WORKDIR/config.json     what was asked for            WORKDIR/metrics.jsonl   a line a step
       /checkpoints/    see `checkpoint`              WORKDIR/adapter/        mapper and LoRA, ready to be used
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import psynth_jax
from psynth_jax.convert.adapter_directory import Adapter, save_adapter
from psynth_jax.data.shards import digest
from psynth_jax.data.with_sink import WithSink
from psynth_jax.directories import writing
from psynth_jax.errors import ConfigError, TrainingError, UserError, listing
from psynth_jax.files import write_text
from psynth_jax.model import Model
from psynth_jax.sharding import put, replicated
from psynth_jax.storage.paths import AnyPath, as_path
from psynth_jax.storage.publishing import adopt
from psynth_jax.training.batch import BatchBuilder
from psynth_jax.training.checkpoint import CheckpointReader, CheckpointStore
from psynth_jax.training.config import TrainConfig, differences, with_schedule_steps
from psynth_jax.training.curves import coarse, read_metrics, until
from psynth_jax.training.lock import Hold, working_in
from psynth_jax.training.metric_files import FILE
from psynth_jax.training.metrics import Metrics
from psynth_jax.training.optimizer import learning_rate
from psynth_jax.training.parameters import check_targets, initial_parameters, not_finite
from psynth_jax.training.pipeline import BatchIterator, BatchSource, Loaded
from psynth_jax.training.plan import Plan
from psynth_jax.training.preemption import Preemption, preemption
from psynth_jax.training.programs import Key, KnownShapes, TrainingPrograms, write_shapes
from psynth_jax.training.report import CONFIG, summarise
from psynth_jax.training.reporter import OnStep, Reporter, losses_by_task
from psynth_jax.training.step import Parameters
from psynth_jax.training.tasks import TaskData
from psynth_jax.training.vocabulary import check_sources

ADAPTER = "adapter"
TELL_AFTER = 2.0  # seconds of evaluation between two words about how far it is

log = logging.getLogger("psynth_jax")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a start of a run ended.  begin: the step that it went on after, 0 for a new run.  adapter: where it was written.

    reason: "done", "stop_at", "terminated" (SIGTERM or SIGHUP) or "interrupted" (Ctrl-C).
    """

    step: int
    reason: str
    adapter: AnyPath
    begin: int


def silent(_: str) -> None:
    """Say nothing."""


class Trainer:
    """One start of a run.

    plan: which examples form which batch.  batches: of all steps, by number.  state: what has been computed so far.
    dropped: task -> reason -> number of examples that no batch has.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Model,
        data: Sequence[TaskData],
        evaluation: Sequence[TaskData] = (),
        on_step: OnStep | None = None,
        say: Callable[[str], None] = silent,
        checkpoint: str = "latest",
        programs: TrainingPrograms | None = None,
    ):
        """Prepare a run, and continue it where its last checkpoint stands.

        Args:
          config: what to do; `model` and `data` are what it names.
          model: on its devices.
          data, evaluation: examples of `config.data` and of `config.evaluation`.
          on_step: called with the numbers of each step and evaluation, in the first process.
          say: told, in a few words, what takes longer than a step.
          checkpoint: "best" or a step, to be exported; a run goes on from the latest.
          programs: of the same config and model, begun before the examples were read; None: made here.

        Raises:
          ConfigError: config and checkpoint disagree.
          CheckpointError: the checkpoint is damaged, or does not fit.
          InputError: there is no such checkpoint.
          DataError: no example can be used, or one has a token that the model has no row for.
        """
        check_targets(config.trainable, model.config)
        self.model, self.workdir = model, as_path(config.workdir)
        self._on_step, self._say = on_step, _also_logged(say)
        self._first_process = jax.process_index() == 0
        reader = CheckpointReader(self.workdir)
        self._latest = reader.latest
        step = reader.find(checkpoint) if self._latest is not None or checkpoint != "latest" else None
        about = None if step is None else reader.about(step)
        self.config = with_schedule_steps(config, None if about is None else about["config"])
        config = self.config
        self._sources = [source for _, source in data]
        self._tasks = [source.task for source in self._sources]
        self._say(f"planning batches of {sum(map(len, self._sources)):,} examples ...")
        self.plan, builder = self._batches(data, config.seed)
        self.batches = BatchSource(self.plan, builder, config.train.steps)
        self._evaluation: BatchSource | None = None
        self._evaluation_tasks = [source.task for _, source in evaluation]
        left_out = [*zip(self._tasks, self.plan.dropped, strict=True)]
        evaluates = evaluation if config.train.evaluate_every else ()
        if evaluates:
            plan, builder = self._batches(evaluation, None)
            count = len(plan.batches(0))
            if not count:
                raise ConfigError("weights of `evaluation` are so small that no example is taken")
            self._evaluation = BatchSource(plan, builder, count)
            labels = [f"{task} (evaluation)" for task in self._evaluation_tasks]
            left_out += zip(labels, plan.dropped, strict=True)
        self.dropped = _by_name(left_out)
        if about is None:  # what a run has begun with was checked then, and every batch is once more
            sources = [*self._sources, *(source for _, source in evaluates)]
            check_sources(sources, model.config.vocab_size, model.name, self._say)
        tasks = max(len(data), len(evaluation))
        if programs is None or programs.options.tasks != tasks:
            programs = TrainingPrograms(config, model, tasks, self._say)
        self.programs = programs
        self.state = programs.first_state()
        self._data_state: dict[str, Any] | None = None
        self._begun_with: str | None = None
        if step is not None:
            self._take(reader, step)

    @property
    def _schedule_steps(self) -> int:
        assert self.config.optimizer.schedule_steps is not None
        return self.config.optimizer.schedule_steps

    def _batches(self, data: Sequence[TaskData], seed: int | None) -> tuple[Plan, BatchBuilder]:
        mesh, reads, limits = self.model.mesh, self.config.reads, self.config.batch
        tasks, sources = [task for task, _ in data], [source for _, source in data]
        plan = Plan(sources, tasks, limits, reads=reads, config=self.model.config, seed=seed)
        known = self.model.name, self.model.config.vocab_size
        return plan, BatchBuilder(sources, tasks, reads=reads, mesh=mesh, micro_batches=limits.accumulate, model=known)

    def _take(self, reader: CheckpointReader, step: int) -> None:
        about = reader.about(step)
        if not self.model.identity.matches(about["fingerprint"]):
            told = self.model.identity.told_from(about["fingerprint"], about["model"], self.model.name)
            raise ConfigError(f"{self.workdir} was trained on the base model {told}")
        check_continues(self.config, about)
        if about.get("teacher", self.programs.taught_by) != self.programs.taught_by:
            raise ConfigError(f"{self.workdir} was taught by another adapter than {self.config.teacher} is now")
        self.state, self._data_state = reader.restore(step, self.state)
        self._begun_with = about.get("batches")

    @property
    def step(self) -> int:
        """How many steps have been done."""
        return int(self.state.step)

    def run(self, *, hold: Hold | None = None, end_process: Callable[[int], object] | None = None) -> Outcome:
        """Train until the end, `stop_at`, or a signal; save, write the adapter, and say how it ended.

        Args:
          hold: what `lock.working_in` gave the caller; None: the workdir is locked here.
          end_process: called with an exit code when a signal should stop the run at once and the main thread is busy.

        Raises:
          TrainingError: the loss is no number, the workdir cannot be written, or another run works there.  The last
            checkpoint stays.
          ConfigError: the checkpoint is of a run with other batches, whose examples would be doubled or left out.
        """
        if self._data_state is not None and self._begun_with != self.plan.digest:
            raise ConfigError(
                f"{self.workdir} was begun with other batches, of other data or by another version: begin anew"
            )
        holding = working_in(self.workdir, self._say) if hold is None else contextlib.nullcontext(hold)
        with holding as held, _writing(self.workdir):
            if CheckpointReader(self.workdir).latest != self._latest:
                raise TrainingError(f"another run has worked in {self.workdir} since this one was prepared: start again")
            return self._run(held, end_process)

    def _run(self, hold: Hold, end_process: Callable[[int], object] | None) -> Outcome:
        config = self.config
        begin, last = self.step, min(config.train.steps, config.train.stop_at or config.train.steps)
        metrics = Metrics(self.workdir, config.logging, hold.check)

        known = self._known_shapes()
        if config.compile_ahead:
            self.programs.compile_ahead(known.keys)

        def open_files() -> None:
            hold.check()
            if config.compile_ahead:
                write_shapes(self.workdir, known)
            write_text(self.workdir / CONFIG, config.model_dump_json(indent=1) + "\n")
            metrics.open(config.model_dump(mode="json"), begin)

        with (
            contextlib.closing(self.programs),
            metrics,
            CheckpointStore(self.workdir, config.checkpoint, hold.check) as store,
            preemption(self._say, end_process) as heard,
        ):
            hold.together(open_files)
            finished = self._steps(last, metrics, store, heard, hold)
            self._say("waiting until the checkpoint is on disk ...")
            store.wait()
            hold.together(lambda: self._before_export(hold))
            self._latest = store.latest
            adapter = self.export(self.workdir / ADAPTER)
        if not finished:
            return Outcome(self.step, heard.told_by or "terminated", adapter, begin)
        return Outcome(self.step, "done" if last == config.train.steps else "stop_at", adapter, begin)

    def _known_shapes(self) -> KnownShapes:
        """Return what batches look like, as planned: those of a mesh may come out a little larger."""
        keys = [Key("train", shape) for shape in self.plan.shapes]
        if self._evaluation is not None:
            keys += [Key("evaluate", shape) for shape in self._evaluation.plan.shapes]
        return KnownShapes(self.programs.options.tasks, tuple(keys))

    def _before_export(self, hold: Hold) -> None:
        hold.check()
        adopt(self.workdir / ADAPTER)  # what another start has not written to its end

    def _steps(self, last: int, metrics: Metrics, store: CheckpointStore, heard: Preemption, hold: Hold) -> bool:
        """Do the steps up to `last`; return False when told to end before."""
        if self.step >= last:  # a run that was made shorter stands behind its end, where Grain cannot go
            return True
        config, batches = self.config, BatchIterator(self.batches, self._data_state)
        reporter = self._reporter(metrics, store)
        for step in range(self.step + 1, last + 1):
            loaded = next(batches)
            if not self.programs.is_there("train", loaded.shape):
                reporter.finish()  # the step before ends while this one is compiled
            sums, compiling = self.train_batch(loaded)
            heard.begin()
            reporter.exclude(compiling)
            reporter.add(step, sums, loaded)
            ends = heard.told(step)
            evaluates = self._evaluation is not None and (step % config.train.evaluate_every == 0 or step == last)
            saves = step % config.checkpoint.every == 0 or step == last or ends
            if not evaluates and not saves:
                continue
            reporter.finish()  # nothing is kept of a step whose loss is no number
            eval_loss = self._evaluated(step, reporter, heard) if evaluates else None
            if saves or heard.told_here:
                ends = ends or heard.told_here
                self._say(f"saving step {step} ...")
                hold.together(metrics.flush)  # a checkpoint must not be there before the lines of its steps
                store.save(step, self.state, batches.state(), self._about(), eval_loss)
            reporter.pause()
            if ends and step < last:
                return False
        return True

    def train_batch(self, loaded: Loaded) -> tuple[dict[str, Any], float]:
        """Do one step on a batch; return its sums, still being computed, and the seconds that compiling took."""
        before = self.programs.waited
        self.state, sums = self.programs.train(self.state, loaded.shape, loaded.batch)
        return sums, self.programs.waited - before

    def _evaluated(self, step: int, reporter: Reporter, heard: Preemption) -> float | None:
        """Return the mean cross-entropy of the evaluation data; None: the run was told to end before all were read."""
        assert self._evaluation is not None
        parameters = self.state.average or self.state.parameters
        total: Any = None
        told = time.monotonic()
        for number in range(len(self._evaluation)):
            if heard.told_here:
                return None
            if time.monotonic() - told > TELL_AFTER:
                told = time.monotonic()
                self._say(f"evaluating, {number} of {len(self._evaluation)} batches ...")
            loaded = self._evaluation[number]
            found = jax.device_get(self.programs.evaluate(parameters, loaded.shape, loaded.batch))
            total = found if total is None else jax.tree.map(np.add, total, found)
        loss, divergence = (float(total[name] / total["tokens"]) for name in ("cross_entropy", "distillation"))
        by_task = {f"eval_loss/{name}": own for name, own in losses_by_task(self._evaluation_tasks, total).items()}
        reporter.tell(step, {"eval_loss": loss, "eval_distillation": divergence} | by_task)
        return loss

    def _reporter(self, metrics: Metrics, store: CheckpointStore) -> Reporter:
        return Reporter(
            metrics,
            self._on_step if self._first_process else None,
            self.model.config,
            self.state.parameters.lora(1.0),
            1 if self.model.mesh is None else self.model.mesh.size,
            self._tasks,
            learning_rate(self.config.optimizer, self._schedule_steps),
            sum(sum(reasons.values()) for reasons in self.plan.dropped),
            functools.partial(self._no_number, store),
        )

    def _no_number(self, store: CheckpointStore, step: int, loaded: Loaded) -> str:
        found = [f"{self._tasks[task]} {number}" for group in loaded.planned.groups for task, number in group]
        some = listing(found, ", ")
        kept = store.latest
        left = f"the checkpoint of step {kept} stays" if kept is not None else "there is no checkpoint yet"
        cause = self._cause(loaded) or ("lower optimizer.learning_rate, or look at these examples with `psynth data show`")
        return f"loss or gradient of step {step} is not a number (examples {some}); {left}: {cause}"

    def _cause(self, loaded: Loaded) -> str | None:
        """Return what else than learning explains a loss that is no number; None: nothing that can be seen."""
        if names := not_finite(self.model.decoder.parameters()):
            return f"weights of the base model {self.model.name} are not finite: {listing(names, ', ')}"
        identity: Any = initial_parameters(self.config.trainable.model_copy(update={"start": None}), self.model, 0)
        if self.programs.sharded is not None:
            identity = jax.tree.map(put, identity, self.programs.sharded.parameters)
        found = jax.device_get(self.programs.evaluate(identity, loaded.shape, loaded.batch))
        if not np.isfinite(found["cross_entropy"]):
            advice = "; try dtype=float32" if self.config.dtype != "float32" else ""
            return f"the logits of the base model {self.model.name} itself are not finite for these examples{advice}"
        if not np.isfinite(found["distillation"]):
            return "the logits of the teacher are not finite for these examples"
        return None

    def _about(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "fingerprint": self.model.fingerprint,
            "model": self.model.name,
            "batches": self.plan.digest,
            "teacher": self.programs.taught_by,
            "psynth_jax": psynth_jax.__version__,
        }

    def _course(self) -> dict[str, Any]:
        """Return how the run went up to here, in numbers and as a coarse curve; nothing before its first step.

        Curves are for looking at: an adapter is written without them, too.
        """
        file = self.workdir / FILE
        if not self.step:
            return {}
        try:
            curves, damaged = read_metrics(file)
        except UserError as error:
            self._say(f"the adapter says nothing of its losses: {error}")
            return {}
        if damaged:
            self._say(f"{file}: {damaged} damaged lines are left out")
        curves = until(curves, self.step)
        return {"course": summarise(curves), "loss": coarse(curves["loss"])} if "loss" in curves else {}

    def export(self, directory: str | AnyPath, dtype: str | None = None) -> AnyPath:
        """Write mapper and adapter, averaged if the config says so, with a summary of the run; dtype: of the adapter."""
        place = as_path(directory)
        self._say(f"writing the adapter to {place} ...")
        parameters = self.state.average or self.state.parameters
        if self.model.mesh is not None:
            parameters = jax.jit(lambda x: x, out_shardings=replicated(self.model.mesh))(parameters)
        if self._first_process:
            held: Parameters = jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), parameters)
            sink = next((source.sink for source in self._sources if isinstance(source, WithSink)), ())
            adapter = Adapter(
                held.lora(self.programs.options.lora_scale), held.mapper, sink=sink, template=self.config.template
            )
            learned = [{"task": s.task, "examples": len(s), "sha256": digest(s)} for s in self._sources]
            summary = {"steps": self.step, "jax": jax.__version__, "data": learned} | self._about() | self._course()
            with writing(place):
                save_adapter(place, adapter, self.model, summary, dtype)
        return place


def _by_name(counts: Iterable[tuple[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Add up what tasks of the same name have."""
    together: dict[str, Counter[str]] = {}
    for name, reasons in counts:
        together.setdefault(name, Counter()).update(reasons)
    return {name: dict(reasons) for name, reasons in together.items()}


def check_continues(config: TrainConfig, about: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a config that disagrees with the checkpoint that it would continue."""
    if wrong := differences(config, about["config"]):
        raise ConfigError(f"config and checkpoint of {config.workdir} disagree: {listing(wrong)}")


def _also_logged(say: Callable[[str], None]) -> Callable[[str], None]:
    def both(text: str) -> None:
        log.info("%s", text)
        say(text)

    return both


@contextlib.contextmanager
def _writing(workdir: AnyPath) -> Iterator[None]:
    """Turn a full disk, or whatever else the file system says to a run, into an error that says what to do."""
    try:
        yield
    except BrokenPipeError:  # of the terminal's reader, not of a file
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "make room and start again" if full else "start again where it can"
        raise TrainingError(
            f"{workdir} cannot be written: {error.strerror or error}; its whole checkpoints stay: {remedy}"
        ) from None
