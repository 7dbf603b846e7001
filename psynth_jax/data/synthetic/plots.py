"""Word problems: what is given, what is asked, and the steps to the answer; see plots.yaml.

    given     the depot in Amberford has 14 crates; in Colddale there are 9; 5 were sold
    steps     s = p + q = 23, t = s - r = 18
    working   The two depots have 14 + 9 = 23 crates. The sale leaves 23 - 5 = 18 crates.

A problem can be worked out with a mistake in it: see `judge`.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from psynth_jax.data.synthetic.more import read_yaml
from psynth_jax.data.synthetic.world import World, capitalised

_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}


_LEAST = 2  # of every result


@dataclasses.dataclass(frozen=True)
class Step:
    """result = left operation right, of named numbers.

    must: what has to be done, if it can be forgotten.
    """

    result: str
    left: str
    operation: str
    right: str
    says: Sequence[str]
    must: str = ""


@dataclasses.dataclass(frozen=True)
class Plot:
    """One entry of plots.yaml."""

    name: str
    names: Mapping[str, str]
    numbers: Mapping[str, Sequence[int]]
    facts: Mapping[str, Sequence[str]]
    labels: Mapping[str, str]
    asks: Sequence[str]
    steps: Sequence[Step]
    units: Mapping[str, tuple[int, int, str]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A plot with its names and numbers.  values: what is given, constants included."""

    plot: Plot
    names: Mapping[str, str]
    values: dict[str, int]

    @property
    def answer(self) -> int:
        """The result of the last step."""
        results = solve(self.plot.steps, self.values)
        assert results is not None, "a problem is drawn until it has an answer"
        return results[self.plot.steps[-1].result]

    def text(self, template: str, values: Mapping[str, int] | None = None) -> str:
        """Fill in names and numbers."""
        numbers = self.values if values is None else values
        return template.format(**numbers, **self.names)


@functools.cache
def plots() -> Mapping[str, Plot]:
    """Read plots.yaml."""
    found = {}
    for name, entry in read_yaml("plots.yaml").items():
        steps = [Step(*step) for step in entry.pop("steps")]
        units = {key: tuple(unit) for key, unit in entry.pop("units", {}).items()}
        found[name] = Plot(name=name, steps=steps, units=units, **entry)
    return found


def solve(steps: Sequence[Step], given: Mapping[str, int]) -> dict[str, int] | None:
    """Work out every step; None where a result is less than 2, or a division leaves a rest.

    Sentences are in the plural, so that nothing may be 1.
    """
    values = dict(given)
    for step in steps:
        left, right = values[step.left], values[step.right]
        if step.operation == "/" and left % right:
            return None
        values[step.result] = _OPERATIONS[step.operation](left, right)
        if values[step.result] < _LEAST:
            return None
    return values


def draw_problem(world: World) -> Problem:
    """Draw a plot, then numbers until all of its results are whole and positive."""
    plot = world.rng.choice(list(plots().values()))
    names = {key: world.entity(kind) for key, kind in plot.names.items()}
    while True:
        values = {key: world.rng.randint(*ends) for key, ends in plot.numbers.items()}
        # Numbers that differ can be told apart, in a working too.
        if len(set(values.values())) < len(values):
            continue
        values |= {key: unit[0] for key, unit in plot.units.items()}
        if solve(plot.steps, values) is not None:
            return Problem(plot, names, values)


def fact(world: World, problem: Problem, number: str) -> str:
    """Say one of the numbers that are given."""
    return capitalised(problem.text(world.rng.choice(problem.plot.facts[number])))


def equation(step: Step, values: Mapping[str, int]) -> str:
    """Write a step with its numbers, such as "14 + 9 = 23"."""
    left, right = values[step.left], values[step.right]
    return f"{left} {step.operation} {right} = {values[step.result]}"


def working(
    world: World,
    problem: Problem,
    values: Mapping[str, int],
    steps: Sequence[Step],
    first: Sequence[str] = ("",),
    later: Sequence[str] = ("",),
) -> str:
    """Write the steps as sentences, with the results that `values` has for them.

    first, later: what the first sentence, and those after it, may begin with.
    """
    sentences: list[str] = []
    for step in steps:
        said = problem.text(world.rng.choice(step.says).replace("{eq}", equation(step, values)))
        begin = world.rng.choice(later if sentences else first)
        sentences.append(capitalised(f"{begin}{said}."))
    return " ".join(sentences)


def described(problem: Problem) -> dict[str, Any]:
    """Return what the answer can be derived from, as JSON values."""
    program = [[step.result, step.left, step.operation, step.right] for step in problem.plot.steps]
    return {"plot": problem.plot.name, "values": dict(problem.values), "program": program}
