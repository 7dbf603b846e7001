"""Training steps: tokens a second, what part of the device's matmul rate they use, and whether the data keeps up.

The examples are random tokens, stored and read back as prepared data is, and the steps are those of `psynth train`.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.bench import rates
from psynth_jax.bench.timing import in_turn, timed
from psynth_jax.bench.torch_train import TorchTrainer
from psynth_jax.data.example import BranchTokens, Example
from psynth_jax.data.shards import Shard, ShardWriter, Vocabulary
from psynth_jax.errors import InputError
from psynth_jax.model import Model
from psynth_jax.training.config import MOST, TrainConfig
from psynth_jax.training.flops import peak_flops, step_flops
from psynth_jax.training.parameters import initial_parameters
from psynth_jax.training.pipeline import BatchIterator, BatchSource
from psynth_jax.training.tasks import TaskData
from psynth_jax.training.trainer import Trainer

PREFIX = 8  # tokens before what is kept of a branch
ANY_NUMBER = 1_000_000  # of steps: more than are done
READ_SECONDS = 2.0  # how long batches are read when nothing computes


@dataclasses.dataclass(frozen=True)
class Workload:
    """A batch: examples with so many branches; tokens are those of the longest, the shortest has half as many."""

    examples: int
    branches: int
    branch_tokens: int
    prompt_tokens: int
    target_tokens: int


def train(
    model: Model, source: str, workload: Workload, repeats: int, options: Mapping[str, Any], *, against_torch: bool
) -> dict[str, Any]:
    """Measure steps on one batch, and with `against_torch` both loops of `torch_train` on its examples.

    options: fields of `TrainConfig` that change how a step is computed, `remat` and `implementation`.

    Returns what `psynth bench train --json` prints, less the description of the device.  Raises `InputError` for sizes out
    of range.
    """
    if min(*dataclasses.astuple(workload), repeats) < 1:
        raise InputError("examples, branches, tokens and repeats must be at least 1")
    examples = random_examples(workload, model.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        config = _config(folder, source, model, workload, options)
        trainer = Trainer(config, model, [TaskData(config.data[0], _stored(folder, examples))])
        if any(trainer.dropped.values()):
            raise InputError(f"an example needs more positions than {model.name} has: {model.config.max_positions}")
        if len(trainer.plan.batches(0)) != 1:
            raise InputError(
                f"{workload.examples} examples are not the size of a batch: take 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."
            )
        loaded = trainer.batches[0]
        counts = loaded.counts
        read = _examples_read_per_second(trainer.batches)

        def step() -> float:
            return float(jax.block_until_ready(trainer.train_batch(loaded)[0])["loss"])

        runs: dict[str, Callable[[], float]] = {"psynth": step}
        if against_torch:
            runs |= _torch_loops(config, model, source, examples)
        losses = {name: run() for name, run in runs.items()}
        losses["psynth"] /= counts.target_tokens
        measures = {name: timed(run) for name, run in runs.items()} | {"matmul": rates.matmul(model.decoder.dtype)}
        seconds = in_turn(measures, repeats)
    tokens = counts.branch_tokens + counts.prompt_tokens + counts.target_tokens
    shape = loaded.shape
    flops = step_flops(model.config, trainer.state.parameters.lora(1.0), counts)
    matmul, peak = rates.matmul_rate(seconds["matmul"]), peak_flops(jax.devices()[0])
    rate = flops / seconds["psynth"] / (1 if model.mesh is None else model.mesh.size)
    found = dataclasses.asdict(workload) | {
        **options,
        "tokens": tokens,
        "padded_tokens": shape.listed + shape.fed,
        "step_s": seconds["psynth"],
        "tokens_per_s": tokens / seconds["psynth"],
        "flops": flops,
        "flops_per_s": flops / seconds["psynth"],
        "matmul_flops_per_s": matmul,
        "of_matmul_rate": rate / matmul,
        "mfu": None if peak is None else rate / peak,
        "loss": losses["psynth"],
        "examples_read_per_s": read,
        "read_over_trained": read * seconds["psynth"] / workload.examples,
        "repeats": repeats,
    }
    for name in ("torch", "torch_published") if against_torch else ():
        found |= {
            f"{name}_s": seconds[name],
            f"{name}_tokens_per_s": tokens / seconds[name],
            f"{name}_loss": losses[name],
            f"times_{name}": seconds[name] / seconds["psynth"],
        }
    return found


def random_examples(workload: Workload, vocabulary: int) -> list[Example]:
    """Draw a batch."""
    rng = np.random.default_rng(0)

    def ids(most: int) -> HostArray:
        return rng.integers(0, vocabulary, rng.integers(-(-most // 2), most + 1), dtype=np.int32)

    return [
        Example(
            str(number),
            "random",
            prompt=ids(workload.prompt_tokens),
            pasted=ids(1),
            target=ids(workload.target_tokens),
            branches=tuple(BranchTokens(ids(PREFIX), ids(workload.branch_tokens)) for _ in range(workload.branches)),
        )
        for number in range(workload.examples)
    ]


def _config(folder: str, source: str, model: Model, workload: Workload, options: Mapping[str, Any]) -> TrainConfig:
    return TrainConfig.parse(
        {
            "workdir": str(Path(folder) / "run"),
            "model": source,
            "dtype": str(model.decoder.dtype),
            "data": ({"path": folder},),
            "batch": {
                "tokens": MOST,  # no limit
                "shapes": 1,
                "examples": workload.examples,
                "branches": workload.branches,
                "branch_tokens": workload.branch_tokens + PREFIX,
                "text_tokens": workload.prompt_tokens,
                "target_tokens": workload.target_tokens,
            },
            "train": {"steps": ANY_NUMBER},
            "logging": {"tensorboard": False},
            **options,
        }
    )


def _stored(folder: str, examples: Sequence[Example]) -> Shard:
    with ShardWriter(folder, "random", Vocabulary("none", 0, 0, "none")) as writer:
        for example in examples:
            writer.add(example)
    return Shard(Path(folder) / "random")


def _examples_read_per_second(batches: BatchSource) -> float:
    """Read, lay out and hand over batches as a run does, with nothing to compute."""
    iterator, examples = BatchIterator(batches), 0
    next(iterator)  # threads start
    begin = time.perf_counter()
    while time.perf_counter() - begin < READ_SECONDS:
        examples += next(iterator).counts.examples
    return examples / (time.perf_counter() - begin)


def _torch_loops(
    config: TrainConfig, model: Model, source: str, examples: Sequence[Example]
) -> dict[str, Callable[[], float]]:
    mapper = initial_parameters(config.trainable, model, config.seed).mapper
    assert mapper is not None
    rank, alpha, rate = config.trainable.rank, config.trainable.alpha, config.optimizer.learning_rate

    def trainer() -> TorchTrainer:
        return TorchTrainer(source, config.dtype, mapper, rank, alpha, rate)

    competent, published = trainer(), trainer()
    return {
        "torch": functools.partial(competent.competent, examples),
        "torch_published": functools.partial(published.published, examples),
    }
