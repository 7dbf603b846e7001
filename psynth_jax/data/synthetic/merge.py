"""Partial lists of workers, with what others withdraw or correct, made into one list in order.

    branches   In the port of Amberford I counted these ships: Bold Tern and Amber Gull.
               Moored in Amberford were Amber Gull, Calm Otter.
               Correction: the Calm Otter never came to Amberford.
    query      Which ships were in the port of Amberford? Put all lists together ...
    target     Amber Gull, Bold Tern

No branch withdraws or corrects what it lists itself, and nothing depends on which came first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psynth_jax.data.synthetic.draft import Draft, notes
from psynth_jax.data.synthetic.more import more_words
from psynth_jax.data.synthetic.world import World, capitalised

_FEWEST_ITEMS, _MOST_ITEMS = 3, 6  # that are on the merged list
_MOST_STRUCK, _MOST_CORRECTED = 2, 2
_FEWEST_LISTS, _MOST_LISTS = 2, 4
_ELSEWHERE = 0.5  # of the questions have a list of another place
_NUMBERS = range(2, 100)
_TOGETHER = "Put all lists together, leave out what is withdrawn"
_FORM = "Separate the names by commas."
_ORDERS = {
    "alphabet": "and give the names {alphabet}.",
    "number": "mind the corrections, and give the names {by}.",
}


def draw(world: World) -> Draft:
    """Deal items out over lists, then strike some and correct the numbers of others."""
    templates = world.rng.choice(more_words().lists)
    place = world.entity(templates["place"])
    order = world.rng.choice(list(_ORDERS))
    kept = world.rng.randint(_FEWEST_ITEMS, _MOST_ITEMS)
    struck = world.rng.randint(0, _MOST_STRUCK)
    items = [world.entity(templates["kind"]) for _ in range(kept + struck)]
    numbers = dict(zip(items, world.rng.sample(_NUMBERS, len(items)), strict=True))
    withdrawn = items[kept:]
    corrected = {}
    if order == "number":
        for item in items[: world.rng.randint(0, _MOST_CORRECTED)]:
            corrected[item] = _another(world, numbers)
    first = numbers | corrected  # what the lists say
    placed = _lists(world, templates, place, order, first)
    _add_corrections(world, templates, place, placed, withdrawn, corrected, numbers)
    if world.rng.random() < _ELSEWHERE:
        world.rng.choice(placed)["told"].append(_list_of_another_place(world, templates))
    asked = world.rng.choice(templates["asks"]).format(p=place)
    wanted = _ORDERS[order].format(**templates)
    query = f"{capitalised(asked)} {_TOGETHER}, {wanted} {_FORM}"
    left = items[:kept]
    if order == "number":
        left.sort(key=numbers.__getitem__)
    else:
        left.sort(key=bare)
    target = ", ".join(bare(item) for item in left)
    told = [each["told"] for each in placed]
    about = {
        "order": order,
        "lists": [sorted(told["items"]) for told in placed],
        "withdrawn": withdrawn,
        "numbers": numbers,
        "corrected": corrected,
        "told": told,
    }
    return Draft(query, target, (target,), 0.001, about, lambda: notes(world, told))


def bare(entity: str) -> str:
    """Return a name as it stands in a list."""
    return entity.removeprefix("the painting ").removeprefix("the ")


def _another(world: World, numbers: Mapping[str, int]) -> int:
    """Draw a number that no item has."""
    return world.rng.choice([number for number in _NUMBERS if number not in numbers.values()])


def _lists(
    world: World, templates: Mapping[str, Any], place: str, order: str, numbers: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Give every item to one list or to several, and write the lists."""
    count = world.rng.randint(_FEWEST_LISTS, _MOST_LISTS)
    listed: list[list[str]] = [[] for _ in range(count)]
    for position, item in enumerate(world.rng.sample(list(numbers), len(numbers))):
        chosen = {position % count} | {world.rng.randrange(count) for _ in range(2)}
        for number in chosen:
            listed[number].append(item)
    placed = []
    for items in listed:
        if not items:
            continue
        world.rng.shuffle(items)
        written = []
        for item in items:
            if order == "number":
                written.append(templates["with_number"].format(x=bare(item), n=numbers[item]))
            else:
                written.append(bare(item))
        said = world.rng.choice(templates["says"]).format(p=place, items=_joined(world, written))
        placed.append({"items": items, "told": [capitalised(said)]})
    return placed


def _list_of_another_place(world: World, templates: Mapping[str, Any]) -> str:
    names = [bare(world.entity(templates["kind"])) for _ in range(2)]
    said = world.rng.choice(templates["says"])
    place = world.entity(templates["place"])
    return capitalised(said.format(p=place, items=" and ".join(names)))


def _joined(world: World, written: Sequence[str]) -> str:
    """Join with commas, and perhaps an "and"."""
    if len(written) > 1 and world.rng.random() < 0.6:
        return f"{', '.join(written[:-1])} and {written[-1]}"
    return ", ".join(written)


def _add_corrections(
    world: World,
    templates: Mapping[str, Any],
    place: str,
    placed: list[dict[str, Any]],
    withdrawn: Sequence[str],
    corrected: Mapping[str, int],
    numbers: Mapping[str, int],
) -> None:
    """Let a worker who did not list an item strike or correct it; a new one where all did."""
    said = []
    for item in withdrawn:
        text = world.rng.choice(templates["strike"]).format(x=item, p=place)
        said.append((item, capitalised(text)))
    for item, wrong in corrected.items():
        text = world.rng.choice(templates["correct"]).format(x=item, n=numbers[item], old=wrong)
        said.append((item, capitalised(text)))
    checker: dict[str, Any] | None = None
    for item, text in said:
        others = [each for each in placed if item not in each["items"]]
        if not others:
            checker = {"items": [], "told": []}
            placed.append(checker)
            others = [checker]
        world.rng.choice(others)["told"].append(text)
    world.rng.shuffle(placed)
