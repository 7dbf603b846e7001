"""Generated questions as tokenised examples, made by several processes where there are many.

    record 0 .. 249 | 250 .. 499 | ...     a chunk at a time, each by the process that is free

A record depends on its number alone, so the examples are the same however many processes make them.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from psynth_jax.data.example import Example, tokenise
from psynth_jax.data.synthetic import KINDS, Kind, synthetic_record
from psynth_jax.data.synthetic.world import Split
from psynth_jax.errors import ConfigError
from psynth_jax.tokenizer import Tokenizer

CHUNK = 250  # records, about a second of work
FEWEST = 2000  # records from which starting processes, some seconds, is worth it


@dataclasses.dataclass(frozen=True)
class Generated:
    """What is generated: `count` records of these kinds in turn."""

    count: int
    seed: int
    split: Split
    kinds: Sequence[Kind] = KINDS


def synthetic_examples(wanted: Generated, tokenizer: Tokenizer, processes: int = 1) -> list[Example]:
    """Return the examples, in the order of their records.

    Args:
      wanted: what is generated.
      tokenizer: of the model that is trained.
      processes: most processes that share the work.  More than one need a program whose main module
        can be imported again, as a console script can.

    Raises `ConfigError` for a tokenizer without an end token.
    """
    if tokenizer.end_id is None:
        raise ConfigError("the tokenizer has no end token, with which a target ends")
    starts = range(0, wanted.count, CHUNK)
    if processes == 1 or wanted.count < FEWEST:
        return [example for first in starts for example in _chunk(wanted, tokenizer, first)]
    # Fork would copy the locks of JAX's threads.
    context = multiprocessing.get_context("spawn")
    workers = min(processes, len(starts))
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(wanted, tokenizer)) as pool:
        chunks = list(pool.map(_chunk_here, starts))
    return [example for chunk in chunks for example in chunk]


_here: tuple[Generated, Tokenizer] | None = None  # of a process of the pool


def _begin(wanted: Generated, tokenizer: Tokenizer) -> None:
    global _here
    _here = wanted, tokenizer


def _chunk_here(first: int) -> list[Example]:
    assert _here is not None
    return _chunk(*_here, first)


def _chunk(wanted: Generated, tokenizer: Tokenizer, first: int) -> list[Example]:
    end_id = tokenizer.end_id
    assert end_id is not None
    examples = []
    for number in range(first, min(first + CHUNK, wanted.count)):
        kind = wanted.kinds[number % len(wanted.kinds)]
        record = synthetic_record(kind, number, wanted.seed, wanted.split)
        examples.append(tokenise(record, tokenizer, end_id))
    return examples
