"""Yes or no, over one or two branches: the question alone is right half of the time.

    Does Ada Halgren play the same instrument as Nils Orgard?      yes
    Was Amberford founded before Colddale?                            no

The answer is drawn first and the facts are made to fit it, so that no wording leans to one side.
"""

from __future__ import annotations

from typing import Any

from psynth_jax.data.synthetic.draft import Draft, notes, spread
from psynth_jax.data.synthetic.more import more_words
from psynth_jax.data.synthetic.world import Relation, World, capitalised, fill, words

_FORMS = ("holds", "same", "different", "more", "fewer", "before", "after")
_OTHERS = 3  # facts about others, at most


def draw(world: World) -> Draft:
    """Ask whether something holds of one entity, or how two compare."""
    form = world.rng.choice(_FORMS)
    yes = world.rng.random() < 0.5
    if form == "holds":
        return _about_one(world, yes)
    templates = more_words().comparisons[form]
    relation = words().relations[world.rng.choice(list(templates))]
    subjects = [world.entity(relation.subject) for _ in range(2)]
    values = _pair(world, form, relation, yes)
    ask = world.rng.choice(templates[relation.name]).format(a=subjects[0], b=subjects[1])
    about = {"form": form, "relation": relation.name, "subjects": subjects, "values": values}
    return _draft(world, ask, relation, yes, about)


def _about_one(world: World, yes: bool) -> Draft:
    with_claims = [relation for relation in words().relations.values() if relation.claim]
    relation = world.rng.choice(with_claims)
    subject, asked = world.entity(relation.subject), world.value(relation)
    value = asked
    if not yes:
        value = world.value(relation, [asked])
    claim = fill(relation.claim, s=subject, v=asked)
    ask = f"is it true that {claim}?"
    about = {
        "form": "holds",
        "relation": relation.name,
        "subjects": [subject],
        "values": [value],
        "asked": asked,
    }
    return _draft(world, ask, relation, yes, about)


def _pair(world: World, form: str, relation: Relation, yes: bool) -> list[str]:
    """Draw the values of both, so that the answer is the one wanted."""
    first = world.value(relation)
    second = world.value(relation, [first])
    if form in ("same", "different"):
        return [first, first] if (form == "same") == yes else [first, second]
    ordered = sorted([first, second], key=int)
    ascending = (form in ("fewer", "before")) == yes
    return ordered if ascending else ordered[::-1]


def _draft(world: World, ask: str, relation: Relation, yes: bool, about: dict[str, Any]) -> Draft:
    query = capitalised(world.rng.choice(more_words().questions["yesno"]).format(ask=ask))
    told = []
    for subject, value in zip(about["subjects"], about["values"], strict=True):
        told.append(world.fact(subject, relation, value).text)
    for _ in range(world.rng.randint(1, _OTHERS)):
        other = world.entity(relation.subject)
        told.append(world.fact(other, relation, world.value(relation)).text)
    placed = spread(world, told, world.rng.randint(2, 6))
    answer = "yes" if yes else "no"
    about = about | {"told": placed}
    return Draft(query, answer, (answer,), 0.5, about, lambda: notes(world, placed))
