r"""What a kind of question draws: all of a record but its id, with branches that are written last.

    draw(world) -> Draft ──query hashed to another split──> drawn again
                     └───query hashed to this split───> write() -> branches -> Record

Targets that show their working end in the form of `data.final_answer`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from psynth_jax.data.record import BranchText
from psynth_jax.data.synthetic.world import World


@dataclasses.dataclass(frozen=True)
class Draft:
    """A question, its answer, and how its branches are written.

    chance: of a guess by the question alone.  about: what the answer can be derived from again.
    write: makes the branches, which is most of the work; called only for a draft that is kept.
    """

    query: str
    target: str
    answers: tuple[str, ...]
    chance: float
    about: Mapping[str, Any]
    write: Callable[[], tuple[BranchText, ...]]


Draw: TypeAlias = Callable[[World], Draft]


def spread(world: World, told: Sequence[str], branches: int) -> list[list[str]]:
    """Deal sentences out: each branch gets one as long as they last, the rest go anywhere."""
    placed: list[list[str]] = [[] for _ in range(branches)]
    order = world.rng.sample(placed, branches)
    for number, sentence in enumerate(told):
        if number < branches:
            order[number].append(sentence)
        else:
            world.rng.choice(placed).append(sentence)
    return placed


def notes(world: World, placed: Sequence[Sequence[str]]) -> tuple[BranchText, ...]:
    """Write a branch of 20 to 150 words around the sentences of each; half have a prefix."""
    return tuple(BranchText(world.branch(told), world.prefix()) for told in placed)


def worker_texts(world: World, query: str, texts: Sequence[str]) -> tuple[BranchText, ...]:
    """Make branches of what workers answered, in random order.

    Half of them have what a worker was asked as their prefix.
    """
    branches = []
    for text in texts:
        prefix = ""
        if world.rng.random() < 0.5:
            prefix = f"Question: {query}\n\nAnswer: "
        branches.append(BranchText(text, prefix))
    world.rng.shuffle(branches)
    return tuple(branches)
