"""`lookup` and `join` once more, over branches of 250 to 700 words.

    branch   headings and paragraphs of sentences that say nothing, the facts somewhere among them

The sentences that say nothing name the same people and places again and again.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping, Sequence

from psynth_jax.data.record import BranchText
from psynth_jax.data.synthetic.draft import Draft
from psynth_jax.data.synthetic.kinds import Kind
from psynth_jax.data.synthetic.more import more_words
from psynth_jax.data.synthetic.tasks import ask
from psynth_jax.data.synthetic.world import World, capitalised, words

FEWEST_WORDS, MOST_WORDS = 250, 700  # of a branch
_FEWEST_BRANCHES, _MOST_BRANCHES = 2, 4
_LONGEST_SENTENCE = 40  # words, with a heading
_JOINED, _HEADED = 0.25, 0.3  # of the sentences, of the paragraphs
_CAST = 16  # names of a kind that come up in the sentences that say nothing


def draw(world: World) -> Draft:
    """Ask as `lookup` or `join` does, with few long branches."""
    kind: Kind = world.rng.choice(("lookup", "join"))
    asked = ask(kind, world)
    branches = world.rng.randint(_FEWEST_BRANCHES, _MOST_BRANCHES)
    placed: list[list[str]] = [[] for _ in range(branches)]
    own = world.rng.sample(placed, len(asked.groups))
    for branch, group in zip(own, asked.groups, strict=True):
        branch += [fact.text for fact in group]
    for fact in asked.loose:
        world.rng.choice(placed).append(fact.text)
    everything = [fact for group in asked.groups for fact in group] + list(asked.loose)
    about = {
        "asks": kind,
        "asked": dict(asked.about),
        "facts": [[fact.subject, fact.relation, fact.value] for fact in everything],
        "told": placed,
    }
    return Draft(
        asked.question,
        asked.answer,
        (asked.answer,),
        asked.chance,
        about,
        lambda: _write(world, placed),
    )


class _Cast:
    """Who is named in sentences that say nothing: the same people and places again and again."""

    def __init__(self, world: World):
        self._world = world
        self._names: dict[str, list[str]] = {}

    def name(self, kind: str) -> str:
        """Return one of the names of a kind, a new one as long as there are few."""
        names = self._names.setdefault(kind, [])
        if len(names) < _CAST:
            names.append(self._world.entity(kind))
            return names[-1]
        return self._world.rng.choice(names)

    def filled(self, template: str) -> str:
        """Fill the slots of a template, those of long branches and those of all."""
        pieces = []
        for literal, field, _, _ in string.Formatter().parse(template):
            pieces.append(literal)
            if field is None:
                continue
            if field in words().names:
                pieces.append(self.name(field))
            else:
                pieces.append(self._world.rng.choice(_slots()[field]))
        return "".join(pieces)


@functools.cache
def _slots() -> Mapping[str, Sequence[str]]:
    return {**words().slots, **more_words().long_slots}


def _write(world: World, placed: Sequence[Sequence[str]]) -> tuple[BranchText, ...]:
    cast = _Cast(world)
    return tuple(BranchText(_long_branch(world, cast, told), world.prefix()) for told in placed)


def _long_branch(world: World, cast: _Cast, told: Sequence[str]) -> str:
    """Write a branch of 250 to 700 words that holds every sentence of `told` word for word."""
    wanted = world.rng.randint(FEWEST_WORDS, MOST_WORDS - 2 * _LONGEST_SENTENCE)
    templates = [*more_words().long_fillers, *words().fillers]
    world.rng.shuffle(templates)
    sentences, size = list(told), _count(told)
    while size < wanted:
        if len(templates) < 2:
            templates += more_words().long_fillers
        sentence = _filler(world, cast, templates)
        sentences.append(sentence)
        size += len(sentence.split())
    world.rng.shuffle(sentences)
    paragraphs, room = [], MOST_WORDS - _count(sentences)
    while sentences:
        length = world.rng.randint(3, 8)
        paragraph = " ".join(sentences[:length])
        del sentences[:length]
        heading = ""
        if world.rng.random() < _HEADED:
            heading = cast.filled(world.rng.choice(more_words().long_headings)) + "\n"
        room -= len(heading.split())
        if room < 0:
            heading = ""
        paragraphs.append(heading + paragraph)
    return "\n\n".join(paragraphs)


def _filler(world: World, cast: _Cast, templates: list[str]) -> str:
    """Take a sentence that says nothing, or two that are joined."""
    first = cast.filled(templates.pop())
    if world.rng.random() < _JOINED:
        joint = world.rng.choice(more_words().long_joints)
        first = first.removesuffix(".") + joint + cast.filled(templates.pop())
    return capitalised(first)


def _count(sentences: Sequence[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)
