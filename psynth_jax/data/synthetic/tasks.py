"""What is asked of synthetic branches, one function a kind.

    kind           what has to be read                                            chance in the notes
    lookup         one fact among those of others in the same relation            26%: 3 to 5 such values
    join           two facts in two branches: who is meant, then what of them     36%: 2 to 4 such chains
    count          how many entities have a value; or how many reports say so     20%: answers are even from 1 to 5
    contradiction  the reports differ: what the latest, or the one checked, says  36%: 2 to 4 such values
    majority       the reports differ: what most of them say                      42%: 2 or 3 such values
    arithmetic     the sum or difference of two numbers in two branches            2%: the notes do not have it

"Chance in the notes" is what somebody scores who knows the kind of answer and picks one that the notes offer; by the
question alone the chance is that of `Asked.chance`.  Knows no record.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, TypeAlias

from psynth_jax.data.synthetic.kinds import Kind
from psynth_jax.data.synthetic.world import NUMBERS, Fact, Relation, World, capitalised, chance, fill, words

MOST_BRANCHES = 8
_COUNTS = range(1, 6)
_FIRST_DAY, _DAYS = datetime.date(1990, 1, 1), 12_000
_DATE_FORMS = ("{d} {month} {y}", "{month} {d}, {y}", "{y}-{m:02}-{d:02}")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question with everything that has to be said for it and against it.

    groups: facts, each group for another branch of its own; loose: facts for any branch.  about: what is asked, so that the
    answer can be derived from the facts again.  chance: of a guess by the question alone.  notes: more about single facts,
    by their texts.
    """

    question: str
    answer: str
    groups: Sequence[Sequence[Fact]]
    loose: Sequence[Fact]
    about: Mapping[str, Any]
    chance: float
    notes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def ask(kind: Kind, world: World) -> Asked:
    """Make up a question of a kind, its answer, and the facts for it."""
    return _KINDS[kind](world)


def _relations(pick: Callable[[Relation], object]) -> list[Relation]:
    return [relation for relation in words().relations.values() if pick(relation)]


def _question(world: World, form: str, question: str) -> str:
    return capitalised(world.rng.choice(words().questions[form]).format(ask=question))


def _values(world: World, relation: Relation, count: int) -> list[str]:
    found: list[str] = []
    for _ in range(count):
        found.append(world.value(relation, found))
    return found


def _told_of_others(world: World, relation: Relation, count: int, avoid: Sequence[str]) -> list[Fact]:
    """Say of `count` other entities what the relation says, with values other than those in `avoid`."""
    return [world.fact(world.entity(relation.subject), relation, world.value(relation, avoid)) for _ in range(count)]


def _lookup(world: World) -> Asked:
    relation = world.rng.choice(_relations(lambda each: each.asks))
    subject = world.entity(relation.subject)
    value, *others = _values(world, relation, world.rng.randint(3, 5))
    loose = [world.fact(world.entity(relation.subject), relation, other) for other in others]
    loose += [world.aside([relation], subject) for _ in range(world.rng.randint(0, 1))]
    question = _question(world, "plain", fill(world.rng.choice(relation.asks), s=subject))
    about = {"subject": subject, "relation": relation.name}
    return Asked(question, value, [[world.fact(subject, relation, value)]], loose, about, chance(relation))


def _join(world: World) -> Asked:
    """Ask for a value of somebody who is only called by a relation to somebody else; tell of other such pairs, too."""
    bridge = world.rng.choice(_relations(lambda each: each.phrase))
    # Two hops of one relation would make "the teacher of X" both a question and an answer.
    relation = world.rng.choice(_relations(lambda each: each.subject == bridge.value and each is not bridge))
    pairs = world.rng.randint(2, 4)
    subjects = [world.entity(bridge.subject) for _ in range(pairs)]
    means = [world.entity(bridge.value) for _ in range(pairs)]
    values = _values(world, relation, pairs)
    firsts = [world.fact(subject, bridge, mean) for subject, mean in zip(subjects, means, strict=True)]
    seconds = [world.fact(mean, relation, value) for mean, value in zip(means, values, strict=True)]
    meant = fill(world.rng.choice(bridge.phrase), s=subjects[0])
    question = _question(world, "plain", fill(world.rng.choice(relation.asks), s=meant))
    about = {"subject": subjects[0], "relation": bridge.name, "then": relation.name}
    return Asked(question, values[0], [firsts[:1], seconds[:1]], firsts[1:] + seconds[1:], about, chance(relation))


def _count(world: World) -> Asked:
    """Count entities with a value, or reports with a claim.  How many facts there are tells nothing of the answer."""
    relation = world.rng.choice(_relations(lambda each: each.counts))
    value = world.value(relation)
    answer = world.rng.choice(_COUNTS)
    against = world.rng.randint(max(_COUNTS) + 1, MOST_BRANCHES) - answer
    luck = 1 / len(_COUNTS)
    if world.rng.random() < 0.5:
        subjects = [world.entity(relation.subject) for _ in range(answer)]
        loose = [world.fact(subject, relation, value) for subject in subjects]
        loose += _told_of_others(world, relation, against, [value])
        question = _question(world, "count", fill(world.rng.choice(relation.counts), v=value))
        return Asked(question, str(answer), [], loose, {"relation": relation.name, "value": value}, luck)
    subject = world.entity(relation.subject)
    said = [value] * answer + [world.value(relation, [value]) for _ in range(against)]
    claim = fill(relation.claim, s=subject, v=value)
    question = capitalised(world.rng.choice(words().questions["votes"]).format(claim=claim))
    groups = [[world.fact(subject, relation, each)] for each in said]
    about = {"subject": subject, "relation": relation.name, "value": value}
    return Asked(question, str(answer), groups, _told_of_others(world, relation, 1, [value]), about, luck)


def _contradiction(world: World) -> Asked:
    relation = world.rng.choice(_relations(lambda each: each.counts or each.value in ("year", "code", "number")))
    subject = world.entity(relation.subject)
    values = _values(world, relation, world.rng.randint(2, 4))
    by = world.rng.choice(["latest", "checked"])
    notes: list[dict[str, Any]]
    if by == "latest":
        days = [_FIRST_DAY + datetime.timedelta(n) for n in world.rng.sample(range(_DAYS), len(values))]
        latest = max(days)
        answer = values[days.index(latest)]
        written = [_date(world.rng, day) for day in days]
        after = [world.rng.choice(words().dates).format(date=date) for date in written]
        notes = [{"date": day.isoformat(), "written": date} for day, date in zip(days, written, strict=True)]
    else:
        answer = values[0]
        after = [world.rng.choice(words().checked), *(world.rng.choice(words().unchecked) for _ in values[1:])]
        notes = [{"checked": index == 0} for index in range(len(values))]
    facts = [world.fact(subject, relation, value, last) for value, last in zip(values, after, strict=True)]
    question = _question(world, by, fill(world.rng.choice(relation.asks), s=subject))
    about = {"subject": subject, "relation": relation.name, "by": by}
    marked = {fact.text: note for fact, note in zip(facts, notes, strict=True)}
    loose = _told_of_others(world, relation, 1, values)
    return Asked(question, answer, [[fact] for fact in facts], loose, about, chance(relation), marked)


def _date(rng: Random, day: datetime.date) -> str:
    month = words().lists["month"][day.month - 1]
    return rng.choice(_DATE_FORMS).format(d=day.day, m=day.month, y=day.year, month=month)


def _majority(world: World) -> Asked:
    relation = world.rng.choice(_relations(lambda each: each.counts or each.value in ("year", "code", "number")))
    subject = world.entity(relation.subject)
    votes = world.rng.choice([(2, 1), (3, 1), (3, 2), (4, 2), (2, 1, 1), (3, 1, 1), (3, 2, 1), (4, 2, 1)])
    values = _values(world, relation, len(votes))
    said = [value for value, count in zip(values, votes, strict=True) for _ in range(count)]
    question = _question(world, "majority", fill(world.rng.choice(relation.asks), s=subject))
    groups = [[world.fact(subject, relation, value)] for value in said]
    about = {"subject": subject, "relation": relation.name}
    return Asked(question, values[0], groups, _told_of_others(world, relation, 1, values), about, chance(relation))


def _arithmetic(world: World) -> Asked:
    relation = world.rng.choice(_relations(lambda each: each.sums))
    first, second = (world.entity(relation.subject) for _ in range(2))
    larger, smaller = sorted(map(int, _values(world, relation, 2)), reverse=True)
    operation = world.rng.choice(["sum", "difference"])
    templates, answer = (relation.sums, larger + smaller) if operation == "sum" else (relation.differences, larger - smaller)
    question = _question(world, "count", fill(world.rng.choice(templates), a=first, b=second))
    groups = [[world.fact(first, relation, str(larger))], [world.fact(second, relation, str(smaller))]]
    if operation == "sum" and world.rng.random() < 0.5:  # in a sum the larger one need not come first
        groups = [[world.fact(first, relation, str(smaller))], [world.fact(second, relation, str(larger))]]
    about = {"subjects": [first, second], "relation": relation.name, "operation": operation}
    loose = _told_of_others(world, relation, world.rng.randint(1, 2), [])
    return Asked(question, str(answer), groups, loose, about, 1 / len(NUMBERS))


_Maker: TypeAlias = Callable[[World], Asked]
_KINDS: Mapping[Kind, _Maker] = {
    "lookup": _lookup,
    "join": _join,
    "count": _count,
    "contradiction": _contradiction,
    "majority": _majority,
    "arithmetic": _arithmetic,
}
