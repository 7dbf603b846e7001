"""Token ids of examples against the rows of the model: JAX would take the last row for an id beyond the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.data.example import Example, ExampleSource
from psynth_jax.errors import DataError

TOLD_EVERY = 20_000  # examples


def check_sources(sources: Sequence[ExampleSource], vocabulary: int, model: str, say: Callable[[str], None]) -> None:
    """Read all examples once.  Raises `DataError` for a token id that the model has no row for, naming task and example."""
    count, done = sum(len(source) for source in sources), 0
    for source in sources:
        for number in range(len(source)):
            check_example(source[number], source.task, number, vocabulary, model)
            done += 1
            if done % TOLD_EVERY == 0:
                say(f"checking examples, {done:,} of {count:,} ...")


def check_example(example: Example, task: str, number: int, vocabulary: int, model: str) -> None:
    """Raise `DataError` for a token id of an example that the model has no row for."""
    parts = [*_parts(example)]
    together = np.concatenate([tokens for _, tokens in parts])
    if not len(together) or (together.min() >= 0 and together.max() < vocabulary):
        return
    for name, tokens in parts:
        beyond = tokens[(tokens < 0) | (tokens >= vocabulary)]
        if len(beyond):
            raise DataError(
                f"task {task}, example {number} ({example.id!r}): its {name} has the token id {int(beyond[0])}, and {model} "
                f"has rows for 0 to {vocabulary - 1}: prepare the data with the tokenizer that this model was trained with"
            )


def _parts(example: Example) -> Iterator[tuple[str, HostArray]]:
    yield "prompt", example.prompt
    yield "pasted text", example.pasted
    yield "target", example.target
    for number, branch in enumerate(example.branches):
        yield f"branch {number}", branch.prefix
        yield f"branch {number}", branch.kept
