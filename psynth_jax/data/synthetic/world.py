"""The invented world of synthetic questions: names, what can be said of whom, and the prose around it.

Everything is put together from words.yaml by a `random.Random`, so that a seed says what comes out.

    name      Astrid Halgren        coined part: Halgren, hashed to one split for good
    fact      (Astrid Halgren, instrument, cello)
    sentence  "In the evenings Astrid Halgren practises the cello."
    branch    header, facts in random order among sentences that say nothing, 20 to 150 words

Knows no question: what is asked, and what has to be said for it, is in `tasks.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import string
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from random import Random
from typing import Any, Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

FEWEST_WORDS, MOST_WORDS = 20, 150  # of a branch
NUMBERS, YEARS = range(2, 60), range(1650, 1990)
_CODES = 24 * 24 * 9000  # about as many as `World.value` can draw


@dataclasses.dataclass(frozen=True)
class Relation:
    """What can be said of entities of the kind `subject`; see words.yaml for the templates."""

    name: str
    subject: str
    value: str
    facts: tuple[str, ...]
    asks: tuple[str, ...]
    phrase: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    claim: str = ""
    sums: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Words:
    """The content of words.yaml."""

    coined: Mapping[str, Sequence[Sequence[str]]]
    names: Mapping[str, str]
    name_parts: Mapping[str, Sequence[str]]
    lists: Mapping[str, Sequence[str]]
    relations: Mapping[str, Relation]
    fillers: Sequence[str]
    slots: Mapping[str, Sequence[str]]
    openers: Sequence[str]
    headers: Sequence[str]
    frames: Sequence[tuple[str, str]]
    prefixes: Sequence[str]
    questions: Mapping[str, Sequence[str]]
    dates: Sequence[str]
    checked: Sequence[str]
    unchecked: Sequence[str]


@functools.cache
def words() -> Words:
    """Read words.yaml."""
    import yaml

    content = yaml.safe_load(resources.files(__package__).joinpath("words.yaml").read_text(encoding="utf-8"))
    relations = {}
    for name, entry in content.pop("relations").items():
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        relations[name] = Relation(name=name, **given)
    return Words(relations=relations, **content)


def split_of(coined: str) -> Split:
    """Return the one split in which a coined name occurs: a tenth of them in validation, a tenth in test."""
    bucket = zlib.crc32(coined.encode()) % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")  # type: ignore[return-value]


def chance(relation: Relation) -> float:
    """Return how often one value of a relation is right by luck, when nothing but the question is read."""
    lists, kind = words().lists, relation.value
    if kind in lists:
        return 1 / len(lists[kind])
    if kind in words().names:
        return 1 / math.prod(map(len, words().coined[_coin(kind)]))
    return 1 / {"number": len(NUMBERS), "year": len(YEARS), "code": _CODES}[kind]


@dataclasses.dataclass(frozen=True)
class Fact:
    """One thing that a branch says, and the very words in which it does."""

    subject: str
    relation: str
    value: str
    text: str

    def to_json(self, branch: int) -> dict[str, Any]:
        """Return the fact with the number of its branch, from 0."""
        return {"branch": branch, **dataclasses.asdict(self)}


class World:
    """Draws names, values, sentences and branches for one record; no name comes twice.

    rng: the only source of chance.  split: all coined names belong to it.
    """

    def __init__(self, rng: Random, split: Split):
        self.rng = rng
        self.split = split
        self._taken: set[str] = set()

    def entity(self, kind: str) -> str:
        """Draw an entity of a kind; its coined part, and a person's first name, are new to the record."""
        pattern, parts = words().names[kind], words().coined[_coin(kind)]
        while True:
            coined = "".join(map(self.rng.choice, parts))
            pieces = {name: self.rng.choice(words().name_parts[name]) for name in _fields(pattern) if name != "coined"}
            new = {coined, *([pieces["first"]] if "first" in pieces else [])}
            if split_of(coined) == self.split and not new & self._taken:
                self._taken |= new
                return pattern.format(coined=coined, **pieces)

    def value(self, relation: Relation, avoid: Sequence[str] = ()) -> str:
        """Draw something that the relation can say, other than what is in `avoid`."""
        kind = relation.value
        if kind in words().names:
            return self.entity(kind)
        while True:
            if kind in words().lists:
                drawn = self.rng.choice(words().lists[kind])
            elif kind == "code":
                letters = "".join(self.rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(2))
                drawn = f"{letters}-{self.rng.randrange(1000, 10000)}"
            else:
                drawn = str(self.rng.choice({"number": NUMBERS, "year": YEARS}[kind]))
            if drawn not in avoid:
                return drawn

    def fact(self, subject: str, relation: Relation, value: str, after: str = "") -> Fact:
        """Say something of an entity, in one of many ways; `after` is a sentence that must follow it."""
        said = fill(self.rng.choice(relation.facts), s=subject, v=value)
        opener = self.rng.choice(words().openers) if self.rng.random() < 0.3 else ""
        return Fact(subject, relation.name, value, capitalised(opener + said) + (f" {after}" if after else ""))

    def aside(self, but: Sequence[Relation], subject: str | None = None) -> Fact:
        """Say something of an entity, a new one by default, in another relation than those in `but`."""
        allowed = [each for each in words().relations.values() if each not in but]
        if subject is not None:
            kind = next(each.subject for each in but)
            allowed = [each for each in allowed if each.subject == kind]
        relation = self.rng.choice(allowed)
        return self.fact(subject or self.entity(relation.subject), relation, self.value(relation))

    def branch(self, told: Sequence[str]) -> str:
        """Write a branch of 20 to 150 words that holds every sentence of `told` word for word, in random order."""
        header, (before, after) = "", map(self.filled, self.rng.choice(words().frames))
        if self.rng.random() < 0.4:
            header = self.filled(self.rng.choice(words().headers)) + self.rng.choice(["\n", "\n\n", ": "])
        bullet = self.rng.choice(["- ", "* "]) if self.rng.random() < 0.2 else ""
        wanted = self.rng.randint(FEWEST_WORDS + 5, MOST_WORDS - 20)
        sentences = list(told)
        size = sum(len(text.split()) for text in (header, before, after, *sentences)) + len(sentences)
        while size < wanted:
            sentences.append(capitalised(self.filled(self.rng.choice(words().fillers))))
            size += len(sentences[-1].split()) + 1  # a bullet is a word, too
        self.rng.shuffle(sentences)
        if bullet:
            before, after = (f"{before.strip()}\n" if before else ""), (f"\n{after.strip()}" if after else "")
        return header + before + ("\n" if bullet else " ").join(bullet + text for text in sentences) + after

    def prefix(self) -> str:
        """Draw what stands before a branch's text and is not kept: nothing, every other time."""
        return self.filled(self.rng.choice(words().prefixes)) if self.rng.random() < 0.5 else ""

    def filled(self, template: str) -> str:
        """Fill every slot of a template, each occurrence by itself."""
        pieces = []
        for literal, field, _, _ in string.Formatter().parse(template):
            slots = words().slots
            pieces.append(literal)
            if field is not None:
                pieces.append(self.rng.choice(slots[field]) if field in slots else self.entity(field))
        return "".join(pieces)


def fill(template: str, **texts: str) -> str:
    """Fill a template; {av} is the value v with its indefinite article."""
    if "v" in texts:
        texts["av"] = ("an " if texts["v"][0].lower() in "aeiou" else "a ") + texts["v"]
    return template.format(**texts)


def capitalised(sentence: str) -> str:
    """Begin with a capital letter."""
    return sentence[:1].upper() + sentence[1:]


def _coin(kind: str) -> str:
    return "surname" if kind == "person" else kind


def _fields(pattern: str) -> list[str]:
    return [field for _, field, _, _ in string.Formatter().parse(pattern) if field]
