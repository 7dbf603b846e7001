"""What the further kinds are made of: word problems, exercises and templates are whole."""

from __future__ import annotations

import inspect
import itertools
import string
from collections.abc import Iterator
from random import Random

import pytest

from psynth_jax.data.synthetic.code import EXERCISES
from psynth_jax.data.synthetic.exercise import Exercise, exercise_text
from psynth_jax.data.synthetic.long import draw as draw_long
from psynth_jax.data.synthetic.more import more_words
from psynth_jax.data.synthetic.plots import Plot, plots
from psynth_jax.data.synthetic.world import World, words

DOING = {"+": "added", "-": "taken off", "*": "multiplied", "/": "divided"}


def slots(template: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(template) if field}


@pytest.mark.parametrize("plot", plots().values(), ids=lambda plot: plot.name)
class TestPlot:
    def test_every_number_is_said_labelled_and_used(self, plot: Plot) -> None:
        used = set(itertools.chain(*((step.left, step.right) for step in plot.steps)))
        results = {step.result for step in plot.steps}
        assert set(plot.facts) == set(plot.labels) == set(plot.numbers)
        assert used - results == {*plot.numbers, *plot.units}
        assert results - used == {plot.steps[-1].result}
        assert not {*plot.numbers, *plot.units, *results} & {*plot.names}

    def test_every_fact_can_stand_alone(self, plot: Plot) -> None:
        for number, facts in plot.facts.items():
            for fact in facts:
                assert number in slots(fact) and slots(fact) & {*plot.names}
                assert slots(fact) <= {number, *plot.names}

    def test_what_has_to_be_done_is_what_is_done(self, plot: Plot) -> None:
        for step in plot.steps:
            assert not step.must or DOING[step.operation] in step.must
            assert all("{eq}" in said for said in step.says)
        assert all(slots(ask) <= {*plot.names} for ask in plot.asks)

    def test_two_to_four_steps(self, plot: Plot) -> None:
        assert 2 <= len(plot.steps) <= 4
        assert any(step.must for step in plot.steps)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
class TestExercise:
    def test_right_functions_agree_and_every_flaw_can_show(self, exercise: Exercise) -> None:
        rng = Random(3)
        shown = set()
        for _ in range(200):
            arguments = exercise.draw(rng)
            values = {function(*arguments) for function in exercise.right}
            assert len(values) == 1
            shown |= exercise.wrong_with(arguments).keys()
        assert shown == exercise.wrong.keys()

    def test_others_are_called_alike(self, exercise: Exercise) -> None:
        """The arguments alone do not tell which exercise it is."""
        kinds = [type(value) for value in exercise.draw(Random(1))]
        alike = [each for each in EXERCISES if [type(v) for v in each.draw(Random(1))] == kinds]
        assert len(alike) >= 3

    def test_texts_are_functions_of_that_name(self, exercise: Exercise) -> None:
        for function in (*exercise.right, *exercise.wrong):
            text = exercise_text(function, "measure", exercise.says, Random(5))
            assert text.startswith("def measure(") and function.__name__ not in text
            assert text.count('"""') == 2
            assert len(text.splitlines()) == len(inspect.getsource(function).splitlines()) + 1


def test_comparisons_are_of_relations() -> None:
    for form, templates in more_words().comparisons.items():
        for name, asks in templates.items():
            relation = words().relations[name]
            assert all(slots(ask) == {"a", "b"} for ask in asks)
            is_number = relation.value in ("number", "year")
            assert is_number == (form in ("more", "fewer", "before", "after"))


def all_lists() -> Iterator[list[str]]:
    more = more_words()
    groups = (more.questions, more.phrase_parts, more.long_slots, more.solutions, more.candidates)
    for group in groups:
        yield from map(list, group.values())
    yield list(more.long_fillers)


def test_lists_hold_texts() -> None:
    assert all(isinstance(item, str) for each in all_lists() for item in each)
    for part in more_words().phrase_parts.values():
        assert len(set(part)) == len(part) >= 10
    known = {*words().slots, *words().names, *more_words().long_slots}
    for filler in (*more_words().long_fillers, *more_words().long_headings):
        assert slots(filler) <= known
    assert len(set(more_words().long_fillers)) == len(more_words().long_fillers) >= 50
    assert not {*words().slots} & {*more_words().long_slots}


def test_long_branches_end_where_names_run_out() -> None:
    """People are named again and again: there are fewer first names than sentences."""
    for seed in range(40):
        for branch in draw_long(World(Random(seed), "test")).write():
            assert 250 <= len(branch.text.split()) <= 700
