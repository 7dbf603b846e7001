"""Arithmetic over numbers of several branches, in two to four steps that the target shows.

    branches   ... The depot in Amberford has 14 crates. ...
               ... The depot in Colddale holds 9 crates. ...
    target     The two depots have 14 + 9 = 23 crates. The sale leaves 23 - 5 = 18 crates.
               Answer: 18

Some branches hold no number, or numbers of others.
"""

from __future__ import annotations

from psynth_jax.data.final_answer import with_final_answer
from psynth_jax.data.synthetic.draft import Draft, notes, spread
from psynth_jax.data.synthetic.more import more_words
from psynth_jax.data.synthetic.plots import Problem, described, draw_problem, fact, solve, working
from psynth_jax.data.synthetic.world import World, capitalised

_MOST_BRANCHES = 4  # that hold a number
_MOST_EMPTY = 2  # that hold none
_MOST_OTHERS = 2  # numbers of others


def draw(world: World) -> Draft:
    """Deal the numbers of a word problem out over branches."""
    problem = draw_problem(world)
    plot = problem.plot
    ask = problem.text(world.rng.choice(plot.asks))
    query = capitalised(world.rng.choice(more_words().questions["steps"]).format(ask=ask))
    told = [fact(world, problem, number) for number in plot.facts]
    told_in = world.rng.randint(2, min(_MOST_BRANCHES, len(told)))
    placed = spread(world, told, told_in) + [[] for _ in range(world.rng.randint(0, _MOST_EMPTY))]
    for _ in range(world.rng.randint(0, _MOST_OTHERS)):
        world.rng.choice(placed).append(_of_others(world, problem))
    world.rng.shuffle(placed)
    values = solve(plot.steps, problem.values)
    assert values is not None
    answer = str(problem.answer)
    target = with_final_answer(working(world, problem, values, plot.steps), answer)
    about = described(problem) | {"told": placed}
    return Draft(query, target, (answer,), 0.02, about, lambda: notes(world, placed))


def _of_others(world: World, problem: Problem) -> str:
    """Say one of the numbers of others, who are not asked about."""
    names = {key: world.entity(kind) for key, kind in problem.plot.names.items()}
    numbers = {}
    for key, ends in problem.plot.numbers.items():
        numbers[key] = world.rng.randint(*ends)
    other = Problem(problem.plot, names, numbers)
    return fact(world, other, world.rng.choice(list(problem.plot.facts)))
