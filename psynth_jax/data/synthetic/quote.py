"""A phrase that stands in one branch word for word, among phrases about others.

    What did Ada Halgren find?        seven copper lanterns under the west arch

Phrases are put together from parts, so that hardly one comes twice.
"""

from __future__ import annotations

import math

from psynth_jax.data.synthetic.draft import Draft, notes, spread
from psynth_jax.data.synthetic.more import more_words
from psynth_jax.data.synthetic.world import World, capitalised

_FEWEST_OTHERS, _MOST_OTHERS = 2, 4


def draw(world: World) -> Draft:
    """Ask for the phrase that one of several entities goes with."""
    templates = world.rng.choice(more_words().quotes)
    subject = world.entity(templates["subject"])
    phrase = _phrase(world, templates["parts"])
    told = [_said(world, templates["facts"], subject, phrase)]
    for _ in range(world.rng.randint(_FEWEST_OTHERS, _MOST_OTHERS)):
        other, another = world.entity(templates["subject"]), _phrase(world, templates["parts"])
        told.append(_said(world, templates["facts"], other, another))
    ask = world.rng.choice(templates["asks"]).format(s=subject)
    query = capitalised(world.rng.choice(more_words().questions["quote"]).format(ask=ask))
    placed = spread(world, told, world.rng.randint(2, 6))
    about = {"subject": subject, "phrase": phrase, "told": placed}
    chance = 1 / math.prod(len(more_words().phrase_parts[part]) for part in templates["parts"])
    return Draft(query, phrase, (phrase,), chance, about, lambda: notes(world, placed))


def _phrase(world: World, parts: list[str]) -> str:
    return " ".join(world.rng.choice(more_words().phrase_parts[part]) for part in parts)


def _said(world: World, facts: list[str], subject: str, phrase: str) -> str:
    return capitalised(world.rng.choice(facts).format(s=subject, v=phrase))
