"""Branches: what the synthesizer reads of the workers' caches.  Views (`branch.py`), never copies.

`Branches` groups them by question, on the host; `branch_view` turns branches of several questions
into the arrays that a compiled step takes.  Knows no model: a fingerprint says which one made the
cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from psynth_jax import branch_files
from psynth_jax.branch import Branch
from psynth_jax.errors import InputError, ModelMismatchError, listing, shown
from psynth_jax.identity import joined, short
from psynth_jax.storage.paths import AnyPath

_log = logging.getLogger(__name__)


class Branches:
    """The branches of one question, or of a batch of questions.

    Of one question: `count`, `lengths`, `texts`, `token_ids` are flat, `branches[i]` and `branches[[i, j]]` select branches.
    Of a batch they are nested, and `branches[q]` is the `Branches` of question q.
    """

    def __init__(self, questions: Iterable[Iterable[Branch]], fingerprint: str, *, batched: bool):
        """Group branches by question.  Raises `InputError` for no question at all, or several when not `batched`."""
        self.questions = tuple(tuple(branches) for branches in questions)
        self.fingerprint = fingerprint
        self.batched = batched
        if not self.questions or (not batched and len(self.questions) != 1):
            raise InputError(f"branches of {len(self.questions)} questions: one is needed, or a batch of at least one")

    def __repr__(self) -> str:
        """Show how many branches there are, how long they are, and which model made them."""
        counts = [len(branches) for branches in self.questions]
        many = f"{len(counts)} questions of {shown(counts)}" if self.batched else f"{counts[0]}"
        return f"Branches({many} branches, lengths {shown(self.lengths)}, made by {shown(self.fingerprint[:12])})"

    def _each(self, pick: Callable[[Branch], object]) -> list[Any]:
        nested = [[pick(branch) for branch in branches] for branches in self.questions]
        return nested if self.batched else nested[0]

    @property
    def count(self) -> int | list[int]:
        """W, of each question for a batch."""
        counts = [len(branches) for branches in self.questions]
        return counts if self.batched else counts[0]

    @property
    def texts(self) -> list[Any]:
        """What each branch says, as text ("" without a tokenizer)."""
        return self._each(lambda branch: branch.text)

    @property
    def token_ids(self) -> list[Any]:
        """What each branch says, as a list of token ids."""
        return self._each(lambda branch: list(branch.token_ids))

    @property
    def lengths(self) -> list[Any]:
        """How many tokens each branch has."""
        return self._each(lambda branch: len(branch.token_ids))

    @property
    def finish_reasons(self) -> list[Any]:
        """Why each branch ended: "stop", "length" (cut off) or "given"."""
        return self._each(lambda branch: branch.finish_reason)

    def __len__(self) -> int:
        """Branches of one question; questions of a batch."""
        return len(self.questions) if self.batched else len(self.questions[0])

    def __getitem__(self, index: int | slice | Sequence[int]) -> Branches:
        """Select branches (of one question) or one question (of a batch) without touching a cache."""
        if self.batched:
            if not isinstance(index, int | np.integer):
                raise InputError("a batch of questions is indexed by one question's number; select branches after that")
            return Branches([_pick(self.questions, index)], self.fingerprint, batched=False)
        branches = self.questions[0]
        if isinstance(index, slice):
            try:
                chosen: Sequence[Branch] = branches[index]
            except (TypeError, ValueError) as error:  # ValueError: a step of 0
                raise InputError(f"branches are selected by their numbers: {error}") from None
        else:
            chosen = [_pick(branches, number) for number in _numbers(index)]
        return Branches([chosen], self.fingerprint, batched=False)

    def __iter__(self) -> Iterator[Branches]:
        """Go through the branches of one question, or the questions of a batch."""
        return (self[index] for index in range(len(self)))

    @staticmethod
    def join(*groups: Branches) -> Branches:
        """Put the branches of several groups side by side, question by question, in the order given.

        Raises:
          InputError: the groups have different numbers of questions, or there is none.
          ModelMismatchError: they were made by different models.
        """
        groups = _checked_groups(groups)
        fingerprint = _common_fingerprint(groups)
        if len({(len(group.questions), group.batched) for group in groups}) != 1:
            raise InputError("branches can be joined when all of them belong to the same number of questions")
        merged = [
            [branch for group in groups for branch in group.questions[number]] for number in range(len(groups[0].questions))
        ]
        return Branches(merged, fingerprint, batched=groups[0].batched)

    @staticmethod
    def batch(groups: Iterable[Branches]) -> Branches:
        """Make a batch of questions of several groups.  Raises as `join` does."""
        groups = _checked_groups(groups)
        fingerprint = _common_fingerprint(groups)
        questions = [branches for group in groups for branches in group.questions]
        return Branches(questions, fingerprint, batched=True)

    def save(self, directory: str | AnyPath) -> None:
        """Write the branches to a directory, here or in a bucket (gs://...).  See `branch_files`.

        Raises `InputError` for a directory that holds something else, and `OSError` when it cannot be written.
        """
        saved = branch_files.SavedBranches(self.questions, self.fingerprint, self.batched)
        branch_files.save(saved, directory)
        _log.info("saved %r to %s", self, directory)

    @staticmethod
    def load(directory: str | AnyPath) -> Branches:
        """Read branches that `save` wrote; whether a model fits them is checked when it reads them.

        Raises `InputError` when there is no such directory, and `CheckpointError` for files that are damaged.
        """
        saved = branch_files.load(directory)
        branches = Branches(saved.questions, saved.fingerprint, batched=saved.batched)
        _log.info("loaded %r from %s", branches, directory)
        return branches


def _numbers(index: Any) -> list[Any]:
    if isinstance(index, np.ndarray) and index.ndim != 1:
        raise InputError(f"branches are selected by a number or a list of numbers, not by {shown(index)}")
    several = isinstance(index, Sequence | np.ndarray) and not isinstance(index, str | bytes | bytearray)
    return list(index) if several else [index]


def _pick(items: Sequence[Any], index: Any) -> Any:
    if not isinstance(index, int | np.integer) or isinstance(index, bool):
        raise InputError(f"branches are selected by their numbers; {shown(index)} is none")
    if not -len(items) <= index < len(items):
        raise InputError(f"no number {shown(index)} here: there are {len(items)}, counted from 0")
    return items[int(index)]


def _checked_groups(groups: Any) -> tuple[Branches, ...]:
    """Return groups of branches as a tuple.  Raises when there is none, or one is not a `Branches`."""
    if isinstance(groups, str | bytes) or not isinstance(groups, Iterable):
        raise InputError(f"branches must be what `work` or `encode` returned, not {shown(groups)}")
    found = tuple(groups)
    if not found:
        raise InputError("no branches given")
    for group in found:
        if not isinstance(group, Branches):
            raise InputError(f"branches must be what `work` or `encode` returned, not {shown(group)}")
    return found


def _common_fingerprint(groups: Sequence[Branches]) -> str:
    """Return the digest of the model that made all groups.  Raises `ModelMismatchError` when several did."""
    fingerprint = joined([group.fingerprint for group in groups])
    if fingerprint is None:
        made_by = sorted({short(group.fingerprint) for group in groups})
        raise ModelMismatchError(
            f"these branches were made by different models (weights {listing(made_by, ', ')}); "
            "a synthesizer can read one model's caches only"
        )
    return fingerprint


def read_tokens(branches: Sequence[Branch]) -> int:
    """Return how many cached tokens a question reads."""
    return sum(segment.length for branch in branches for segment in branch.segments)


def first_position(branches: Sequence[Branch]) -> int:
    """Return the position at which a question's synthesizer starts: the longest span of any of its branches."""
    return max((branch.span for branch in branches), default=0)
