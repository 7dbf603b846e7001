"""Synthetic questions over several branches: they need no download, and only what is read can answer them.

    query      In which colour was the ship that Ada Halgren commands painted?
    branches   2 to 8 texts of 20 to 150 words; facts stand among facts about others, and among sentences that say nothing
    target     crimson

Names are put together from parts, so that there are millions; each belongs to one split (`world.split_of`), so that no
fact of one split can be learned from another.  Sentences, questions and the look of branches come from many templates.

The first six kinds (`KINDS`, the default) are made in `notes`; each of the others has a file of its name, and its questions
belong to one split by their hash, too.  docs/data.md has an example of each.

`meta` of a record: kind, chance (of a guess by the question alone), and what the answer can be derived from again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from random import Random

from psynth_jax.config import Config
from psynth_jax.data.record import Record
from psynth_jax.data.synthetic import code, judge, long, merge, quote, steps, yesno
from psynth_jax.data.synthetic.draft import Draw
from psynth_jax.data.synthetic.kinds import (
    ALL_KINDS,
    KINDS,
    MORE_KINDS,
    Kind,
    KindList,
)
from psynth_jax.data.synthetic.notes import fact_record
from psynth_jax.data.synthetic.world import SPLITS, Split, World, split_of
from psynth_jax.errors import InputError

__all__ = [
    "ALL_KINDS",
    "KINDS",
    "MORE_KINDS",
    "SPLITS",
    "Kind",
    "KindList",
    "Split",
    "SyntheticOptions",
    "synthetic_record",
    "synthetic_records",
]

_DRAWS: Mapping[Kind, Draw] = {
    "long": long.draw,
    "judge": judge.draw,
    "merge": merge.draw,
    "steps": steps.draw,
    "yesno": yesno.draw,
    "quote": quote.draw,
    "code": code.draw,
}


class SyntheticOptions(Config):
    """What is generated: these kinds in turn, with names of one split."""

    kinds: KindList = KINDS
    split: Split = "train"
    seed: int = 0


def synthetic_records(
    kinds: Sequence[Kind] = KINDS, count: int = 1000, seed: int = 0, split: Split = "train"
) -> Iterator[Record]:
    """Generate `count` records, the kinds in turn, so that each is as frequent as the others.

    Record i depends on (seed, split, kinds, i) alone: the first ten of a hundred are the ten of ten.

    Raises:
      InputError: an unknown kind or split, or none.
    """
    wrong = next((kind for kind in kinds if kind not in ALL_KINDS), None if kinds else "")
    if wrong is not None:
        raise InputError(f"there is no synthetic kind {wrong!r}; choose from {', '.join(ALL_KINDS)}")
    if split not in SPLITS:
        raise InputError(f"there is no split {split!r}; choose from {', '.join(SPLITS)}")
    return (synthetic_record(kinds[index % len(kinds)], index, seed, split) for index in range(count))


def synthetic_record(kind: Kind, index: int, seed: int = 0, split: Split = "train") -> Record:
    """Generate one record; the same arguments give the same record."""
    name = f"{kind}-{split}-{seed}-{index}"
    if kind in _DRAWS:
        return _drawn_record(kind, name, index, seed, split)
    return fact_record(kind, name, World(Random(f"{seed} {split} {kind} {index}"), split))


def _drawn_record(kind: Kind, name: str, index: int, seed: int, split: Split) -> Record:
    """Draw until the question belongs to the split by its hash."""
    for attempt in itertools.count():
        world = World(Random(f"{seed} {split} {kind} {index} {attempt}"), split)
        draft = _DRAWS[kind](world)
        if split_of(draft.query) == split:
            break
    meta = {"kind": kind, "chance": draft.chance, **draft.about}
    task = f"synthetic_{kind}"
    return Record(name, task, draft.query, draft.write(), draft.target, draft.answers, meta)
