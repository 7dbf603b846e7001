"""The examples that a config names: directories of tokenised examples, or generated ones."""

from __future__ import annotations

from collections.abc import Sequence

from psynth_jax.convert.load import open_model
from psynth_jax.data.example import ExampleList, ExampleSource, tokenise
from psynth_jax.data.shards import Shard, end_token
from psynth_jax.data.synthetic import synthetic_records
from psynth_jax.errors import ConfigError
from psynth_jax.training.config import Task, TrainConfig


def load_tasks(config: TrainConfig) -> tuple[list[ExampleSource], list[ExampleSource]]:
    """Return the examples of `config.data` and of `config.evaluation`.

    Raises:
      DataError: a directory is not one of examples, or was made with another tokenizer.
      ConfigError: examples are to be generated, and the model has no tokenizer.
    """
    return _loaded(config, config.data, "train"), _loaded(config, config.evaluation, "test")


def _loaded(config: TrainConfig, tasks: Sequence[Task], split: str) -> list[ExampleSource]:
    stream = open_model(config.model, config.dtype)
    found: list[ExampleSource] = []
    for task in tasks:
        if task.path is not None:
            found.append(Shard(task.path, tokenizer=stream.tokenizer))
            continue
        if stream.tokenizer is None:
            raise ConfigError(f"{config.model} has no tokenizer: examples cannot be generated for it")
        end = end_token(stream.tokenizer)
        records = synthetic_records(count=task.synthetic, seed=config.seed, split=split)
        found.append(ExampleList("synthetic", [tokenise(record, stream.tokenizer, end) for record in records]))
    return found
