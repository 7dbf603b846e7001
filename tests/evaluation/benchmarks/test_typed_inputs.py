"""Types that JSON took from the inputs of MBPP+."""

from __future__ import annotations

from typing import Any

import pytest

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.typed_inputs import shapes_of, with_types


@pytest.mark.parametrize(
    ("assertions", "base", "plus", "typed"),
    [
        ("assert f((1, 2)) == 1", [[1, 2]], [[3, 4, 5]], [(3, 4, 5)]),
        ("assert set(f({1, 2}, 3)) == set(f((1,)))", [[1, 2], 3], [[4], 5], [{4}, 5]),
        ("assert f([(1, 2), (3,)])", [[[1, 2], [3]]], [[[1], []]], [[(1,), ()]]),
        ("assert f((1, (2, (3,))))", [[1, [2, [3]]]], [[[1, [2, [3, [4]]]]]], [((1, (2, (3, (4,)))),)]),
        ("assert f((1, [2]))", [[1, [2]]], [[1, [2, [3]]]], [(1, [2, [3]])]),
        ("assert f(0, 1j)", ["0", "1j"], ["2", "(-0-1j)"], [2 + 0j, complex("(-0-1j)")]),
        ("assert f({1: 'a'})", [{"1": "a"}], [{"2": "b"}], [{2: "b"}]),
        ("assert f({'a': (1,)})", [{"a": [1]}], [{"b": [2]}], [{"b": (2,)}]),
        ("assert f([1])", [[1]], [[2]], [[2]]),
        ("assert f((5, 6))", [[1, 2]], [[3]], [[3]]),
        ("assert f(other((1, 2)))", [[1, 2]], [[3]], [[3]]),
        ("assert g((1, 2))", [[1, 2]], [[3]], [[3]]),
    ],
)
def test_shapes(assertions: str, base: list[Any], plus: list[Any], typed: list[Any]) -> None:
    (found,) = with_types("x:1", [plus], shapes_of(assertions, "f", [base]))
    assert found == typed and [type(one) for one in found] == [type(one) for one in typed]


def test_numbers_that_json_has_as_texts() -> None:
    shapes = shapes_of("assert f(1) == 1\nassert f(4) == 4", "f", [[1], [4]])
    assert with_types("x:1", [["(1+2j)"], [5], ["word"]], shapes) == [[1 + 2j], [5], ["word"]]


def test_two_assertions_may_disagree() -> None:
    shapes = shapes_of("assert f((1,))\nassert f([2])", "f", [[[1]], [[2]]])
    assert with_types("x:1", [[[3]]], shapes) == [[[3]]]


@pytest.mark.parametrize(
    ("assertions", "base", "plus", "message"),
    [
        ("assert f({1, 2})", [[1, 2]], [[[3]]], "unhashable type: 'list'"),
        ("assert f({1: 'a'})", [{"1": "a"}], [{"b": 1}], "invalid literal for int() with base 10: 'b'"),
    ],
)
def test_inputs_of_another_kind(assertions: str, base: list[Any], plus: list[Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        with_types("x:1", [plus], shapes_of(assertions, "f", [base]))
    told = "is of another kind than the assertions"
    assert str(caught.value) == f"x:1: the input {plus!r} {told}: {message}"


@pytest.mark.parametrize("called", ["{[1]}", "{(1, 2): 3}", "-'a'", "{[1]: 2}"])
def test_calls_that_tell_nothing(called: str) -> None:
    assert shapes_of(f"assert f({called})", "f", [[[1]]]) == []
