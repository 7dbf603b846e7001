"""The examples that a config names: directories of tokenised examples, or generated ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from psynth_jax.adapter.sink import chat_sink
from psynth_jax.convert.load import open_model
from psynth_jax.data.example import ExampleList, ExampleSource
from psynth_jax.data.shards import open_shards
from psynth_jax.data.synthetic import KINDS
from psynth_jax.data.synthetic.examples import Generated, synthetic_examples
from psynth_jax.data.synthetic.world import Split
from psynth_jax.data.with_sink import WithSink
from psynth_jax.errors import ConfigError
from psynth_jax.tokenizer import Tokenizer
from psynth_jax.training.config import Task, TrainConfig
from psynth_jax.training.parameters import check_targets


class TaskData(NamedTuple):
    """Examples, and how they are learned."""

    task: Task
    source: ExampleSource


def load_tasks(config: TrainConfig, processes: int = 1) -> tuple[list[TaskData], list[TaskData]]:
    """Return the examples of `config.data` and of `config.evaluation`, each task next to its settings.

    A directory may hold several tasks.  With `trainable.sink` every example has the sink among its branches.  Many generated
    examples are made by so many processes: see `synthetic_examples`.

    Raises:
      DataError: a directory is not one of examples, or was made with another tokenizer or other template variables.
      InputError: the chat template reads no variable of a name in `template`.
      ConfigError: the model has no tokenizer, lacks one of `trainable.targets`, or has no row for a token that ends texts or
        begins chats.
    """
    model = open_model(config.model, config.dtype)
    tokenizer = model.tokenizer
    check_targets(config.trainable, model.config)
    if tokenizer is None or tokenizer.end_id is None:
        raise ConfigError(f"{config.model} has no tokenizer with an end token: examples cannot be made or checked for it")
    rows = model.config.vocab_size
    if tokenizer.end_id >= rows:
        raise ConfigError(f"{config.model} ends texts with token {tokenizer.end_id}, and has rows for 0 to {rows - 1} only")
    tokenizer = tokenizer.with_template(config.template)
    if config.trainable.sink and max(chat_sink(tokenizer)) >= rows:
        beyond = max(chat_sink(tokenizer))
        raise ConfigError(f"{config.model} begins chats with token {beyond}, and has rows for 0 to {rows - 1} only")
    data = list(_loaded(config, config.data, tokenizer, "train", processes))
    return data, list(_loaded(config, config.evaluation, tokenizer, "test", processes))


def _loaded(
    config: TrainConfig, tasks: Sequence[Task], tokenizer: Tokenizer, split: Split, processes: int
) -> Iterator[TaskData]:
    for task in tasks:
        if task.path is not None:
            for shard in open_shards(task.path, tokenizer.fingerprints, tokenizer.template_variables):
                yield TaskData(task, _read(config, shard, tokenizer))
        elif task.synthetic is not None and tokenizer.end_id is not None:
            name = "_".join(("synthetic", *(task.kinds or ())))
            wanted = Generated(task.synthetic, config.seed, split, task.kinds or KINDS)
            examples = synthetic_examples(wanted, tokenizer, processes)
            yield TaskData(task, _read(config, ExampleList(name, examples), tokenizer))


def _read(config: TrainConfig, source: ExampleSource, tokenizer: Tokenizer) -> ExampleSource:
    return WithSink(source, chat_sink(tokenizer)) if config.trainable.sink else source
