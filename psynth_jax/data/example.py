"""A record as token ids: what is stored, batched and fed.

    prompt   the synthesizer's prompt when it reads branches       [chat template: use the notes above ... query]
    pasted   the prompt of the text route: notes and query         [chat template: notes ... query]
    target   what follows either prompt, its end token included
    branches (prefix, kept) of each branch: raw text, no template

Every part is tokenised by itself, so that no token reaches over a border.  Knows no model.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.data.record import Record
from psynth_jax.errors import DataError
from psynth_jax.prompts import baseline_messages, synthesis_messages
from psynth_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class BranchTokens:
    """Token ids of a branch `[any]` int32: prefix (may be empty), and what is kept."""

    prefix: HostArray
    kept: HostArray

    @property
    def length(self) -> int:
        """Tokens that are prefilled for it."""
        return len(self.prefix) + len(self.kept)


@dataclasses.dataclass(frozen=True)
class Example:
    """Token ids int32 of everything that training on one record feeds."""

    id: str
    task: str
    prompt: HostArray
    pasted: HostArray
    target: HostArray
    branches: tuple[BranchTokens, ...]


class Lengths(NamedTuple):
    """What is known of an example without reading it: the columns of an array `[E, 7]` int32 of many.

    prompt, pasted, target: tokens.  branches: how many.  prefilled: tokens of the longest branch, its prefix included; kept:
    of the longest kept text.  all_prefilled: of all branches together.
    """

    prompt: int
    pasted: int
    target: int
    branches: int
    prefilled: int
    kept: int
    all_prefilled: int


def lengths_of(example: Example) -> Lengths:
    """Count an example's tokens."""
    each = [branch.length for branch in example.branches]
    kept = max((len(branch.kept) for branch in example.branches), default=0)
    return Lengths(
        len(example.prompt),
        len(example.pasted),
        len(example.target),
        len(each),
        max(each, default=0),
        kept,
        sum(each),
    )


class ExampleSource(Protocol):
    """Examples of one task by number, with their lengths `[E, 7]` int32."""

    @property
    def task(self) -> str:
        """The task that all of them belong to."""

    @property
    def lengths(self) -> HostArray:
        """Columns of `Lengths`, a row each."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class ExampleList:
    """Examples in memory as an `ExampleSource`."""

    def __init__(self, task: str, examples: list[Example]):
        self.task = task
        self._examples = examples
        self.lengths = np.array([lengths_of(example) for example in examples], np.int32).reshape(-1, len(Lengths._fields))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """Return one of them."""
        return self._examples[index]


def tokenise(record: Record, tokenizer: Tokenizer, end_id: int) -> Example:
    """Turn a record into token ids.

    Args:
      record: texts.
      tokenizer: of the model that will read them; it needs a chat template.
      end_id: what ends the target: the token at which the model stops.

    Raises:
      DataError: a branch or the target has no token.
    """

    def ids(tokens: list[int]) -> HostArray:
        return np.asarray(tokens, np.int32)

    branches = tuple(
        BranchTokens(ids(tokenizer.encode(branch.prefix)), ids(tokenizer.encode(branch.text))) for branch in record.branches
    )
    target = ids([*tokenizer.encode(record.target), end_id])
    if len(target) == 1 or not all(len(branch.kept) for branch in branches):
        raise DataError(f"record {record.id!r}: its target or one of its branches has no token")
    return Example(
        record.id,
        record.task,
        ids(tokenizer.chat(synthesis_messages(record.query))),
        ids(tokenizer.chat(baseline_messages(record.query, [branch.text for branch in record.branches]))),
        target,
        branches,
    )
