"""Versions of a Python function by several workers, right ones and wrong ones.

    branches   Version by Ada Halgren:  def measure(numbers, limit): ... if number >= limit ...
    query      What does the right version of measure([3, 9, 4], 4) return?
    target     The version of Ada Halgren also counts numbers that equal the limit. ...
               Answer: 1

What the function is to do stands in the branches only, as its docstring.  A version is named by its
worker, since branches have no order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from psynth_jax.data.final_answer import with_final_answer
from psynth_jax.data.synthetic.draft import Draft, worker_texts
from psynth_jax.data.synthetic.exercise import Exercise, Function, exercise_text
from psynth_jax.data.synthetic.list_programs import LIST_EXERCISES
from psynth_jax.data.synthetic.more import more_words
from psynth_jax.data.synthetic.value_programs import VALUE_EXERCISES
from psynth_jax.data.synthetic.world import World, capitalised

EXERCISES = (*LIST_EXERCISES, *VALUE_EXERCISES)
_FEWEST, _MOST = 2, 5  # versions


@dataclasses.dataclass(frozen=True)
class Version:
    """What one worker wrote, and what is wrong with it: "" for a right one."""

    worker: str
    function: Function
    flaw: str


def draw(world: World) -> Draft:
    """Ask what the right version returns, or whose version is right."""
    exercise = world.rng.choice(EXERCISES)
    name = world.rng.choice(more_words().candidates["names"])
    arguments = exercise.draw(world.rng)
    wrong = exercise.wrong_with(arguments)
    while not wrong:
        arguments = exercise.draw(world.rng)
        wrong = exercise.wrong_with(arguments)
    by_name = world.rng.random() < 0.5
    versions = _versions(world, exercise, wrong, by_name)
    value = exercise.right[0](*arguments)
    form = "ask_who" if by_name else "ask_value"
    call = f"{name}({', '.join(map(repr, arguments))})"
    query = world.rng.choice(more_words().candidates[form]).format(name=name, call=call)
    answer = str(value)
    if by_name:
        answer = next(version.worker for version in versions if not version.flaw)
    target = with_final_answer(_reason(versions, call, value), answer)
    about = {"exercise": exercise.name, "arguments": list(arguments), "by_name": by_name}
    about["versions"] = [_told(version, arguments) for version in versions]
    texts = [_text(world, exercise, name, version) for version in versions]
    asked = f"Write a function {name}. {exercise.says}"
    return Draft(
        query,
        target,
        (answer,),
        0.05,
        about,
        lambda: worker_texts(world, asked, texts),
    )


def _versions(
    world: World,
    exercise: Exercise,
    wrong: dict[Function, str],
    by_name: bool,
) -> list[Version]:
    """Draw right versions, one only where it is asked for, and wrong ones, which may be more."""
    count = world.rng.randint(_FEWEST, _MOST)
    right = 1
    if not by_name:
        right = world.rng.randint(1, count - 1)
    versions = []
    for number in range(count):
        worker = world.entity("person")
        if number < right:
            versions.append(Version(worker, world.rng.choice(exercise.right), ""))
        else:
            function = world.rng.choice(list(wrong))
            versions.append(Version(worker, function, wrong[function]))
    return versions


def _reason(versions: list[Version], call: str, value: object) -> str:
    """Say what is wrong with each wrong version, and what the right value is."""
    workers: dict[str, list[str]] = {}
    for version in versions:
        if version.flaw:
            workers.setdefault(version.flaw, []).append(version.worker)
    said = []
    for flaw, names in workers.items():
        others = ""
        if len(names) == 2:
            others = f"; so does that of {names[1]}"
        elif len(names) > 2:
            others = f"; so do those of {' and '.join(names[1:])}"
        said.append(f"The version of {names[0]} {flaw}{others}.")
    return capitalised(" ".join([*said, f"The right value of {call} is {value!r}."]))


def _text(world: World, exercise: Exercise, name: str, version: Version) -> str:
    parts = more_words().candidates
    before = world.rng.choice(parts["before"]).format(person=version.worker)
    after = world.rng.choice(parts["after"]).format(person=version.worker)
    written = exercise_text(version.function, name, exercise.says, world.rng)
    return f"{before}\n\n```python\n{written}\n```\n{after}".rstrip()


def _told(version: Version, arguments: tuple[Any, ...]) -> dict[str, Any]:
    return {
        "worker": version.worker,
        "function": version.function.__name__,
        "right": not version.flaw,
        "returns": version.function(*arguments),
    }
