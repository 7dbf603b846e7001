"""A question of `tasks` as a record: its facts are dealt out over branches, and written down.

`meta` has kind, chance, asked, and facts, each with its branch (from 0), subject, relation, value and the text in which the
branch says it; where a date or a check decides, that, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from psynth_jax.data.record import BranchText, Record
from psynth_jax.data.synthetic.kinds import Kind
from psynth_jax.data.synthetic.tasks import MOST_BRANCHES, Asked, ask
from psynth_jax.data.synthetic.world import Fact, World, words

_FACT_WORDS = 90  # of the facts of one branch; what is left of its 150 words is for the rest


def fact_record(kind: Kind, name: str, world: World) -> Record:
    """Generate one record of that name."""
    asked = ask(kind, world)
    placed = _place(asked, world)
    branches = []
    for told in placed:
        text = world.branch([fact.text for fact in told])
        branches.append(BranchText(text, world.prefix()))
    facts = [fact.to_json(number) for number, told in enumerate(placed) for fact in told]
    for fact in facts:
        fact |= asked.notes.get(fact["text"], {})
    meta = {"kind": kind, "chance": asked.chance, "asked": dict(asked.about), "facts": facts}
    return Record(name, f"synthetic_{kind}", asked.question, tuple(branches), asked.answer, (asked.answer,), meta)


def _place(asked: Asked, world: World) -> list[list[Fact]]:
    """Give every fact a branch: each group one of its own, loose ones wherever there is room, asides to fill up."""
    fewest = max(2, len(asked.groups))
    placed: list[list[Fact]] = [[] for _ in range(world.rng.randint(fewest, MOST_BRANCHES))]
    for branch, group in zip(world.rng.sample(placed, len(asked.groups)), asked.groups, strict=True):
        branch += group
    for fact in asked.loose:
        room = [branch for branch in placed if _size([*branch, fact]) <= _FACT_WORDS]
        world.rng.choice(room or [min(placed, key=_size)]).append(fact)
    named = dict.fromkeys(fact.relation for facts in placed for fact in facts)
    asked_for = [words().relations[name] for name in named]
    for _ in range(world.rng.randint(0, 2 * len(placed))):
        fact = world.aside(asked_for)
        branch = world.rng.choice(placed)
        if _size([*branch, fact]) <= _FACT_WORDS:
            branch.append(fact)
    return placed


def _size(facts: Sequence[Fact]) -> int:
    return sum(len(fact.text.split()) for fact in facts)
