"""Options of rows: every form, and the forms that are refused."""

from __future__ import annotations

import math

import pytest

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks.options import lettered_options

FORMS = [
    {"A": "one", "B": "two"},
    {"B": " two\n", "A": "one"},
    {"b": "two", " a": "one", "C": None},
    [{"key": "A", "value": "one"}, {"key": "B", "value": "two"}],
    [{"key": "B", "value": "two"}, {"key": "A", "value": "one"}],
    {"label": ["A", "B"], "text": ["one", "two"]},
    {"label": ["B", "A"], "text": ["two", "one"]},
    ["one", "two"],
]


@pytest.mark.parametrize("options", FORMS)
def test_forms(options: object) -> None:
    assert lettered_options("a:1", {"options": options}) == [("A", "one"), ("B", "two")]


def test_numbers_are_written_out() -> None:
    assert lettered_options("a:1", {"options": [1, -2.5]}) == [("A", "1"), ("B", "-2.5")]


NOT_TEXT = "must be a number or a text that is not empty"
REFUSED = [
    (None, "the row lacks the field 'options', an object of letters and texts, or a list"),
    ("A", "'options' must be an object, or a list of 2 to 10"),
    (["one"], "'options' must be an object, or a list of 2 to 10"),
    (list("abcdefghijk"), "'options' must be an object, or a list of 2 to 10"),
    (["one", None], f"option 'B' {NOT_TEXT}, not None"),
    (["one", " "], f"option 'B' {NOT_TEXT}, not ' '"),
    (["one", True], f"option 'B' {NOT_TEXT}, not True"),
    (["one", math.nan], f"option 'B' {NOT_TEXT}, not nan"),
    ([["x"], ["y"]], f"option 'A' {NOT_TEXT}, not ['x']"),
    (["one", {"key": "B"}], f"option 'B' {NOT_TEXT}, not {{'key': 'B'}}"),
    ({"A": "one", "B": ""}, f"option 'B' {NOT_TEXT}, not ''"),
    ([{"key": "A", "value": "one"}, {"key": "B"}], f"option 'B' {NOT_TEXT}, not None"),
    ({"A": "one", "C": "two"}, "'options' must have the letters A, B, ..., not ['A', 'C']"),
    ({"A": "one", "a": "two"}, "'options' must have the letters A, B, ..., not ['A', 'A']"),
    ({"A": "one"}, "'options' must have the letters A, B, ..., not ['A']"),
    ({}, "'options' must have the letters A, B, ..., not []"),
    (
        [{"value": 1}, {"value": 2}],
        "'options' must have the letters A, B, ..., not ['NONE', 'NONE']",
    ),
    (
        {"label": ["A"], "text": ["x", "y"]},
        "'label' and 'text' of 'options' must be lists of one length",
    ),
    ({"label": "A", "text": "x"}, "'label' and 'text' of 'options' must be lists of one length"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused(options: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        lettered_options("a:1", {"options": options})
    assert str(caught.value) == f"a:1: {message}"
