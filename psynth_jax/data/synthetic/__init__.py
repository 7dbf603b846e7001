"""Synthetic questions over several branches: they need no download, and only what is read can answer them.

    query      In which colour was the ship that Ada Halgren commands painted?
    branches   2 to 8 texts of 20 to 150 words; facts stand among facts about others, and among sentences that say nothing
    target     crimson

Names are put together from parts, so that there are millions; each belongs to one split (`world.split_of`), so that no
fact of one split can be learned from another.  Sentences, questions and the look of branches come from many templates.

`meta` of a record: kind, chance (of a guess by the question alone), asked, and facts, each with its branch (from 0),
subject, relation, value and the text in which the branch says it; where a date or a check decides, that, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Annotated, Any

import pydantic

from psynth_jax.config import Config
from psynth_jax.data.record import BranchText, Record
from psynth_jax.data.synthetic.tasks import KINDS, MOST_BRANCHES, Asked, Kind, ask
from psynth_jax.data.synthetic.world import SPLITS, Fact, Split, World, words
from psynth_jax.errors import InputError

__all__ = ["KINDS", "SPLITS", "Kind", "Split", "SyntheticOptions", "synthetic_record", "synthetic_records"]

_FACT_WORDS = 90  # of the facts of one branch; what is left of its 150 words is for the rest


def _listed(value: Any) -> Any:
    """Take "lookup,join", as a command line has it, and a list for a tuple."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    return tuple(parts) if isinstance(parts, list) else parts


class SyntheticOptions(Config):
    """What is generated: these kinds in turn, with names of one split."""

    kinds: Annotated[tuple[Kind, ...], pydantic.BeforeValidator(_listed), pydantic.Field(min_length=1)] = KINDS
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
    wrong = next((kind for kind in kinds if kind not in KINDS), None if kinds else "")
    if wrong is not None:
        raise InputError(f"there is no synthetic kind {wrong!r}; choose from {', '.join(KINDS)}")
    if split not in SPLITS:
        raise InputError(f"there is no split {split!r}; choose from {', '.join(SPLITS)}")
    return (synthetic_record(kinds[index % len(kinds)], index, seed, split) for index in range(count))


def synthetic_record(kind: Kind, index: int, seed: int = 0, split: Split = "train") -> Record:
    """Generate one record; the same arguments give the same record."""
    world = World(Random(f"{seed} {split} {kind} {index}"), split)
    asked = ask(kind, world)
    placed = _place(asked, world)
    branches = tuple(BranchText(world.branch([fact.text for fact in facts]), world.prefix()) for facts in placed)
    facts = [fact.to_json(number) for number, told in enumerate(placed) for fact in told]
    for fact in facts:
        fact |= asked.notes.get(fact["text"], {})
    meta = {"kind": kind, "chance": asked.chance, "asked": dict(asked.about), "facts": facts}
    name = f"{kind}-{split}-{seed}-{index}"
    return Record(name, f"synthetic_{kind}", asked.question, branches, asked.answer, (asked.answer,), meta)


def _place(asked: Asked, world: World) -> list[list[Fact]]:
    """Give every fact a branch: each group one of its own, loose ones wherever there is room, asides to fill up."""
    fewest = max(2, len(asked.groups))
    placed: list[list[Fact]] = [[] for _ in range(world.rng.randint(fewest, MOST_BRANCHES))]
    for branch, group in zip(world.rng.sample(placed, len(asked.groups)), asked.groups, strict=True):
        branch += group
    for fact in asked.loose:
        room = [branch for branch in placed if _size([*branch, fact]) <= _FACT_WORDS]
        world.rng.choice(room or [min(placed, key=_size)]).append(fact)
    asked_for = [words().relations[name] for name in {fact.relation: None for facts in placed for fact in facts}]
    for _ in range(world.rng.randint(0, 2 * len(placed))):
        fact = world.aside(asked_for)
        branch = world.rng.choice(placed)
        if _size([*branch, fact]) <= _FACT_WORDS:
            branch.append(fact)
    return placed


def _size(facts: Sequence[Fact]) -> int:
    return sum(len(fact.text.split()) for fact in facts)
