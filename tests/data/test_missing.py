"""What is missing, whoever says it, and how numbers are written."""

from __future__ import annotations

import datetime
import decimal
import math
from typing import Any

import numpy as np
import pytest

from psynth_jax.data.missing import DEEPEST, TooDeepError, number_text, without_missing


class NotATime(datetime.datetime):
    """As pandas' NaT: a time that is not equal to itself."""

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = datetime.datetime.__hash__


class NotAvailable:
    """As pandas' NA: it does not say whether it equals anything."""

    def __ne__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None  # type: ignore[assignment]


MISSING = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "NaT": NotATime(2026, 1, 1),
    "NA": NotAvailable(),
    "decimal": decimal.Decimal("NaN"),
    "decimal inf": decimal.Decimal("Infinity"),
    "numpy": np.float32("nan"),
    "numpy NaT": np.datetime64("NaT", "s"),
}


@pytest.mark.parametrize("name", MISSING)
def test_is_none(name: str) -> None:
    assert without_missing(MISSING[name]) is None
    assert without_missing({"a": [MISSING[name], {"b": (MISSING[name],)}]}) == {"a": [None, {"b": [None]}]}


@pytest.mark.parametrize("value", [0, False, "", "nan", "None", 1.5, [], {}, datetime.date(2026, 1, 2), b"x"])
def test_everything_else_stays(value: Any) -> None:
    assert without_missing(value) == value and type(without_missing(value)) is type(value)


def test_arrays_and_decimals_become_plain() -> None:
    found = without_missing([np.array([[1.0, np.nan]]), np.int64(3), decimal.Decimal("12.50"), decimal.Decimal("3.0")])
    assert found == [[[1.0, None]], 3, 12.5, 3] and type(found[1]) is int and type(found[3]) is int


def test_depth_has_an_end() -> None:
    value: Any = 1
    for _ in range(DEEPEST + 1):
        value = [value]
    assert without_missing(value) == value
    with pytest.raises(TooDeepError, match="more than 100 deep"):
        without_missing([value])


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (5, "5"),
        (5.0, "5"),
        (-0.0, "0"),
        (1998.0, "1998"),
        (2.5, "2.5"),
        (1e22, "1e+22"),
        (1e-7, "1e-07"),
        (10**18, "1" + 18 * "0"),
    ],
)
def test_numbers_are_written_without_a_fraction_that_is_none(number: float, written: str) -> None:
    assert number_text(number) == written
