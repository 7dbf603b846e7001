"""What a training run is: model, data, trainable parts, objectives, optimiser, batches, checkpoints.

A YAML file with the fields of `TrainConfig`; `key=value` overrides any of them (`train.steps=100`).  Every field changes
something, an unknown one is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from psynth_jax.config import Config as StrictConfig
from psynth_jax.config import Positive
from psynth_jax.data.synthetic.kinds import KindList
from psynth_jax.errors import ConfigError
from psynth_jax.nn.adapter import ATTENTION_TARGETS
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path, is_bucket
from psynth_jax.template_variables import checked_variables
from psynth_jax.training.plain_values import as_tuples, override, read_json, read_yaml

MOST = 2**31 - 1  # counts become int32 on the devices
Count = Annotated[int, pydantic.Field(ge=1, le=MOST)]
CountOrZero = Annotated[int, pydantic.Field(ge=0, le=MOST)]
Fraction = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
NotNegative = Annotated[float, pydantic.Field(ge=0.0)]
Target = Literal["q", "k", "v", "o", "gate", "up", "down"]


class Config(StrictConfig):
    """Base of a run's configs: numbers are finite, since JSON has no others, and config.json must read back."""

    model_config = pydantic.ConfigDict(allow_inf_nan=False)


class Task(Config):
    """A directory of tokenised examples, or what to generate, and how it is learned.

    path: directory that `psynth data prepare` wrote, one task of it.  synthetic: instead, this many generated examples of
    the multi-branch tasks.  kinds: of these, in turn; None: the six that `synthetic` means by default.  weight: passes
    over it in an epoch; 0.5 takes half, another half in the next epoch.
    cross_entropy, distillation: weights of the two objectives; distillation is from the run's teacher.
    """

    path: str | None = None
    synthetic: Count | None = None
    kinds: KindList | None = None
    weight: Annotated[float, pydantic.Field(gt=0.0, le=1000.0)] = 1.0
    cross_entropy: NotNegative = 1.0
    distillation: NotNegative = 0.0

    @pydantic.model_validator(mode="after")
    def _learns_something(self) -> Self:
        if (self.path is None) == (self.synthetic is None):
            raise ValueError("a task has either a path or a number of synthetic examples")
        if self.kinds is not None and self.synthetic is None:
            raise ValueError("kinds are of synthetic examples: say with synthetic how many there shall be")
        if not self.cross_entropy and not self.distillation:
            raise ValueError("cross_entropy and distillation are both 0: nothing would be learned")
        return self


class Trainable(Config):
    """What is trained.  rank 0: no adapter.  mapper false: the identity.

    mapper_hidden: width of the mapper's hidden layer.  alpha: the LoRA is added times alpha / rank.  targets: projections it
    changes; gate, up and down are those of the MLP, which a mixture of experts does not have.  start: an adapter directory
    to begin from; a part or a target that it lacks begins as the identity.  sink: what every chat begins with is read once,
    as a branch of its own, and all other branches are encoded after it: see `adapter.sink`.
    """

    mapper: bool = True
    mapper_hidden: Count = 32
    rank: CountOrZero = 16
    alpha: Positive = 32.0
    targets: tuple[Target, ...] = ATTENTION_TARGETS
    start: str | None = None
    sink: bool = False

    @pydantic.model_validator(mode="after")
    def _something(self) -> Self:
        if not self.mapper and not self.rank:
            raise ValueError("mapper is false and rank is 0: nothing would be trained")
        if self.rank and (not self.targets or len(set(self.targets)) != len(self.targets)):
            raise ValueError("targets must name at least one projection, each once")
        return self


class Optimizer(Config):
    """AdamW with warm-up and a schedule.

    schedule_steps: its length, after which the learning rate stays at its last value; None: the `train.steps` that the run
    began with, also when it is continued with more or fewer.
    mapper_learning_rate: None is learning_rate.  final: learning rate at the end of a cosine, as a part of the peak.
    clip: largest norm of the gradient; 0: not clipped.  average: decay of the weight average that is exported; 0: none.
    """

    learning_rate: Positive = 1e-4
    mapper_learning_rate: Positive | None = None
    schedule: Literal["constant", "cosine"] = "cosine"
    schedule_steps: Count | None = None
    warmup: CountOrZero = 20
    final: Fraction = 0.1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    clip: NotNegative = 1.0
    average: Fraction = 0.0


class Batches(Config):
    """How examples become batches.

    tokens: most tokens of one micro-batch on average, of all devices together: those of branches, prompts, targets and the
    teacher's text.  examples: most examples of it.  shapes: most different shapes, each of which is
    compiled; the fewer, the more padding.  accumulate: micro-batches of one step.  branch_tokens, branches, text_tokens,
    target_tokens: longer examples are dropped, and counted.
    """

    tokens: Count = 16384
    examples: Count = 32
    shapes: Count = 8
    accumulate: Count = 1
    branch_tokens: Count = 4096
    branches: Count = 64
    text_tokens: Count = 8192
    target_tokens: Count = 2048


class Loop(Config):
    """How long and how often.

    steps: of the run; a later start may have more or fewer.  stop_at: stop, saving, after this step; None: at the end.

    evaluate_every: 0: never.  log_every: steps between lines on a terminal that is none.
    """

    steps: Count
    stop_at: Count | None = None
    evaluate_every: CountOrZero = 0
    log_every: Count = 10


class Checkpoints(Config):
    """When to save: `every` steps, at the end, and on SIGTERM, SIGHUP or Ctrl-C.

    keep: the newest so many.  best: also the one with the lowest evaluation loss.
    """

    every: Count = 100
    keep: Count = 3
    best: bool = True


class Logging(Config):
    """What besides WORKDIR/metrics.jsonl: TensorBoard files, a Weights & Biases project (needs wandb installed)."""

    tensorboard: bool = True
    wandb_project: str | None = None


class TrainConfig(Config):
    """A run.

    workdir: where everything goes, a folder or gs://bucket/name, made if it is not there; one with checkpoints is
    continued. model, dtype: as for `load_model`. template: variables of the chat template, such as
    {enable_thinking: false}; prepared data must have been made with the same, and the adapter notes them. reads:
    "branches" trains a synthesizer; "text" trains the same adapter on pasted text, the yardstick. teacher: an
    adapter directory, whose LoRA the teacher has, such as one trained on pasted text; None is the base alone. mesh:
    axes, such as "data=2,fsdp=4"; None is one device. distributed: start JAX's multi-host runtime ("auto": if the
    environment names a job; "always": have JAX find it, also by a cloud's metadata). remat: compute layers anew in
    the backward pass instead of keeping them. loss_rows: positions of a shard whose logits exist at once.
    compile_ahead: compile for all shapes of batches at the start, several at a time, instead of for each when its
    first batch comes; a later start begins while its examples are read. implementation: of attention.
    """

    workdir: str
    model: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    template: Mapping[str, Any] = {}
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)] = 0
    reads: Literal["branches", "text"] = "branches"
    data: Annotated[tuple[Task, ...], pydantic.Field(min_length=1)]
    evaluation: tuple[Task, ...] = ()
    teacher: str | None = None
    trainable: Trainable = Trainable()
    optimizer: Optimizer = Optimizer()
    batch: Batches = Batches()
    train: Loop
    checkpoint: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    mesh: str | None = None
    distributed: Literal["auto", "always", "none"] = "auto"
    remat: bool = True
    loss_rows: Count = 256
    compile_ahead: bool = False
    implementation: Literal["auto", "xla", "pallas_tpu", "pallas_gpu", "reference"] = "auto"

    @pydantic.field_validator("template", mode="before")
    @classmethod
    def _json_values(cls, value: object) -> dict[str, Any]:
        return checked_variables(value, "template", ConfigError)

    @pydantic.model_validator(mode="after")
    def _agrees(self) -> Self:
        if "://" in self.workdir and not self.workdir.startswith("gs://"):
            raise ValueError("workdir must be a folder that all hosts see, or in a bucket, gs://bucket/name")
        if is_bucket(self.workdir) and not BucketPath(self.workdir).key:
            raise ValueError("workdir is a whole bucket: name a folder in it, gs://bucket/name")
        tasks = (*self.data, *self.evaluation)
        if self.reads == "text" and any(task.distillation for task in tasks):
            raise ValueError("with reads=text the teacher would be the student's own base: set distillation to 0")
        if self.reads == "text" and (self.trainable.mapper or not self.trainable.rank):
            raise ValueError("with reads=text there is no branch to map: set trainable.mapper=false and a rank")
        if self.teacher is not None and not any(task.distillation for task in tasks):
            raise ValueError("a teacher is given, and distillation is 0 everywhere: it would teach nothing")
        if self.reads == "text" and self.trainable.sink:
            raise ValueError("with reads=text there is no branch to stand after a sink: set trainable.sink=false")
        return self


# What may differ when a run is continued: nothing else changes what has been computed so far, or what the state looks like.
MAY_CHANGE = (
    "workdir",
    "train",
    "checkpoint",
    "logging",
    "mesh",
    "distributed",
    "remat",
    "loss_rows",
    "compile_ahead",
    "implementation",
)


def differences(now: TrainConfig, before: Mapping[str, Any]) -> list[str]:
    """List the fields of a continued run that differ from those it began with, and may not.

    before: as JSON holds it.  A field that it lacks, since an earlier version wrote it, has its default.
    """
    current, known = (_without_schedule_steps(values) for values in (now.model_dump(mode="json"), _filled(before)))
    found = [name for name in current if name not in MAY_CHANGE and current[name] != known.get(name)]
    return [f"{name} is {_at(current, name)!r}, it was {_at(known, name)!r}" for name in found]


def _filled(values: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return TrainConfig.parse(as_tuples(values)).model_dump(mode="json")
    except ConfigError:  # an earlier version allowed what this one refuses: compared as it is, it differs
        return values


def _without_schedule_steps(values: Mapping[str, Any]) -> dict[str, Any]:
    optimizer = values.get("optimizer")
    if not isinstance(optimizer, Mapping):
        return dict(values)
    kept = {name: value for name, value in optimizer.items() if name != "schedule_steps"}
    return {**values, "optimizer": kept}


def with_schedule_steps(config: TrainConfig, before: Mapping[str, Any] | None) -> TrainConfig:
    """Return a config that says how long the schedule is.

    That is what `config` gives, else what the run began with (`before`, the config of its checkpoint), else `train.steps`.
    """
    steps = config.optimizer.schedule_steps
    if steps is None and before is not None:
        # Runs of earlier versions recorded none: their schedule is as long as they were to be.
        steps = _at(before, "optimizer.schedule_steps") or _at(before, "train.steps")
    if not isinstance(steps, int):
        steps = config.train.steps
    optimizer = config.optimizer.model_copy(update={"schedule_steps": steps})
    return config.model_copy(update={"optimizer": optimizer})


def _at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply `key=value` overrides, whose values are YAML too.

    Paths in the file are relative to the folder that the command runs in.  Raises `ConfigError` for a file that cannot be
    read, a key that is unknown, or given twice, and for wrong values; all of them in one line.
    """
    values = read_yaml(path)
    override(values, overrides)
    return TrainConfig.parse(as_tuples(values))


def read_run_config(workdir: str | AnyPath) -> TrainConfig:
    """Read WORKDIR/config.json, which a run left there; its workdir is where it lies now.

    Raises `ConfigError` as `read_config` does.
    """
    values = read_json(as_path(workdir) / "config.json")
    return TrainConfig.parse(as_tuples(values | {"workdir": str(workdir)}))
