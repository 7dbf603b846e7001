"""One form for all that says "there is no value", and one spelling for numbers.

    None   NaN, infinities   NaT, NA of pandas   NaN of decimal and NumPy      ->   None
    5.0 (an integer column with gaps is read as floats)                        ->   "5"

Knows no data set.  pandas and NumPy are recognised by what their values do: neither is imported.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Mapping
from typing import Any

DEEPEST = 100  # lists and objects inside of each other
_EXACT = 2**53  # floats below hold every integer


class TooDeepError(ValueError):
    """A value has more than `DEEPEST` lists and objects inside of each other."""


def without_missing(value: Any, depth: int = 0) -> Any:
    """Return a value in which everything that is missing is None, keys and their order kept.

    Tuples and arrays become lists, decimal numbers become int or float; all else stays as it is.
    Raises `TooDeepError`.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth > DEEPEST:
        raise TooDeepError(f"lists and objects are nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        return {key: without_missing(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_missing(item, depth + 1) for item in value]
    if isinstance(value, decimal.Decimal):
        return _number(value)
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy
        return without_missing(value.tolist(), depth + 1)
    return None if _is_missing(value) else value


def number_text(value: int | float) -> str:
    """Write a number, a float without a fraction as the integer that it is.

    Raises `ValueError` for an integer of thousands of digits.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    return str(value)


def _number(value: decimal.Decimal) -> int | float | None:
    if not value.is_finite():
        return None
    number = float(value)
    if value == value.to_integral_value() and abs(value) < _EXACT:
        return int(value)
    return number if math.isfinite(number) else None


def _is_missing(value: Any) -> bool:
    """Recognise NaT and NA: the one is not equal to itself, the other does not even say so."""
    try:
        return bool(value != value)
    except (TypeError, ValueError):
        return True
