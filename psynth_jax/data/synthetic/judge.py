"""Workers' whole answers to a word problem, right ones and wrong ones with a visible flaw.

    query      The depot in Amberford has 14 crates. ... How many crates are left?
    branches   First, the two depots have 14 + 9 = 24 crates. ... So the answer is 19.
               The two depots have 14 + 9 = 23 crates. ... The answer is 18.
    target     14 + 9 is 23, not 24. The two depots have 14 + 9 = 23 crates. ...
               Answer: 18

Wrong workers may be most of them, and may agree.  The query has all that a check needs, so whoever
can calculate needs no branch; `chance` is that of a guess.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from psynth_jax.data.final_answer import with_final_answer
from psynth_jax.data.synthetic.draft import Draft, worker_texts
from psynth_jax.data.synthetic.more import more_words
from psynth_jax.data.synthetic.plots import (
    Problem,
    Step,
    described,
    draw_problem,
    fact,
    solve,
    working,
)
from psynth_jax.data.synthetic.world import World, capitalised

_FEWEST, _MOST = 3, 6  # workers
_AGREE = 0.5  # of the questions have wrong workers who all make the same mistake
_SLIPS = (-10, -2, -1, 1, 2, 10)


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A way to a wrong answer: the steps that are done, their results, and what is wrong."""

    kind: str
    steps: Sequence[Step]
    values: dict[str, int]
    flaw: str

    @property
    def answer(self) -> int:
        """Where it leads."""
        return self.values[self.steps[-1].result]


def draw(world: World) -> Draft:
    """Let several workers answer a word problem, some of them wrongly."""
    problem = draw_problem(world)
    given = [fact(world, problem, number) for number in problem.plot.facts]
    ask = capitalised(problem.text(world.rng.choice(problem.plot.asks)))
    stated = " ".join([*given, ask])
    query = world.rng.choice(more_words().questions["judge"]).format(problem=stated)
    workers = world.rng.randint(_FEWEST, _MOST)
    wrong = world.rng.randint(1, workers - 1)
    mistakes = _mistakes(world, problem, wrong)
    right = solve(problem.plot.steps, problem.values)
    assert right is not None
    texts = [_solution(world, problem, each.values, each.steps) for each in mistakes]
    for _ in range(workers - wrong):
        texts.append(_solution(world, problem, right, problem.plot.steps))
    flaws = " ".join(dict.fromkeys(each.flaw for each in mistakes))
    answer = str(problem.answer)
    shown = working(world, problem, right, problem.plot.steps)
    target = with_final_answer(f"{flaws} {shown}", answer)
    about = described(problem) | {"mistakes": [_told(each) for each in mistakes]}
    return Draft(query, target, (answer,), 0.02, about, lambda: worker_texts(world, stated, texts))


def _told(mistake: Mistake) -> dict[str, Any]:
    return {"kind": mistake.kind, "answer": mistake.answer, "flaw": mistake.flaw}


def _solution(
    world: World,
    problem: Problem,
    values: Mapping[str, int],
    steps: Sequence[Step],
) -> str:
    """Write what a worker writes."""
    parts = more_words().solutions
    body = working(world, problem, values, steps, parts["first"], parts["later"])
    last = values[steps[-1].result]
    end = world.rng.choice(parts["end"]).format(n=last)
    pieces = [world.rng.choice(parts["begin"]), body, end, world.rng.choice(parts["check"])]
    return " ".join(filter(None, pieces))


def _mistakes(world: World, problem: Problem, count: int) -> list[Mistake]:
    """Draw mistakes that lead to wrong answers: one that all of them make, or each its own."""
    agree = world.rng.random() < _AGREE
    found: list[Mistake] = []
    makers = [_slip, _wrong_fact, _missed_step]
    if problem.plot.units:
        makers += [_wrong_unit, _wrong_unit]  # few plots have units
    while len(found) < count:
        mistake = world.rng.choice(makers)(world, problem)
        if mistake is not None and mistake.answer != problem.answer:
            found += [mistake] * (count if agree else 1)
    return found


def _slip(world: World, problem: Problem) -> Mistake | None:
    """Get one step wrong, and continue with the wrong result."""
    number = world.rng.randrange(len(problem.plot.steps))
    step = problem.plot.steps[number]
    before = solve(problem.plot.steps[: number + 1], problem.values)
    assert before is not None
    right = before[step.result]
    slipped = right + world.rng.choice(_SLIPS)
    if slipped < 2:
        return None
    values = solve(problem.plot.steps[number + 1 :], before | {step.result: slipped})
    if values is None:
        return None
    left, operand = before[step.left], before[step.right]
    flaw = f"{left} {step.operation} {operand} is {right}, not {slipped}."
    return Mistake("slip", problem.plot.steps, values, flaw)


def _wrong_fact(world: World, problem: Problem) -> Mistake | None:
    """Take one given number wrongly: its digits swapped, or the number of something else."""
    name = world.rng.choice(list(problem.plot.facts))
    right = problem.values[name]
    taken = [problem.values[other] for other in problem.plot.facts if other != name]
    swapped = int(str(right)[::-1])
    wrong = world.rng.choice([*taken, swapped])
    if wrong == right or wrong < 2:
        return None
    values = solve(problem.plot.steps, problem.values | {name: wrong})
    if values is None:
        return None
    label = capitalised(problem.text(problem.plot.labels[name]))
    return Mistake("fact", problem.plot.steps, values, f"{label} is {right}, not {wrong}.")


def _missed_step(world: World, problem: Problem) -> Mistake | None:
    """Leave one step out: what came before stands for its result."""
    plot = problem.plot
    step = world.rng.choice([each for each in plot.steps if each.must])
    right = solve(plot.steps, problem.values)
    assert right is not None
    results = {each.result for each in plot.steps}
    # What a step begins with may itself be given: then its other number stands for its result.
    kept = step.right
    if step.left in results or step.left == plot.steps[0].left:
        kept = step.left
    done = [_renamed(each, step.result, kept) for each in plot.steps if each is not step]
    last = plot.steps[-1].result
    if step is plot.steps[-1]:
        last = kept
    done = _needed(done, last)
    values = solve(done, problem.values)
    if values is None or not done:
        return None
    flaw = f"A step is left out: {problem.text(step.must, right)}."
    return Mistake("missed", done, values, flaw)


def _needed(steps: Sequence[Step], result: str) -> list[Step]:
    """Return the steps that lead to a result."""
    wanted, found = {result}, []
    for step in reversed(steps):
        if step.result in wanted:
            wanted |= {step.left, step.right}
            found.append(step)
    return found[::-1]


def _renamed(step: Step, old: str, new: str) -> Step:
    """Let a step take its number from elsewhere."""
    left, right = step.left, step.right
    if left == old:
        left = new
    if right == old:
        right = new
    return dataclasses.replace(step, left=left, right=right)


def _wrong_unit(world: World, problem: Problem) -> Mistake | None:
    """Convert with a wrong factor."""
    name, (_, taken_for, rule) = world.rng.choice(list(problem.plot.units.items()))
    values = solve(problem.plot.steps, problem.values | {name: taken_for})
    if values is None:
        return None
    return Mistake("unit", problem.plot.steps, values, capitalised(rule) + ".")
