"""A record as token ids: what is stored, batched and fed.

    prompt   the synthesizer's prompt when it reads branches       [chat template: use the notes above ... query]
    pasted   the prompt of the text route: notes and query         [chat template: notes ... query]
    target   what follows either prompt, its end token included
    branches (prefix, kept) of each branch: raw text, no template

Every part is tokenised by itself, so that no token reaches over a border.  Knows no model.
"""

from __future__ import annotations

import dataclasses

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
