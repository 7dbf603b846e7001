"""Values of a JSON object, each checked when it is read: what comes out has its type, is finite and in range.

A null counts as left out.  Every refusal names the file, the key and the value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from psynth_jax.config import MOST
from psynth_jax.errors import ConfigError, shown

# What float32 holds without loss of precision at either end; on devices all such numbers are float32.
_SMALLEST, _LARGEST = 1.2e-38, 3.4e38


class Fields:
    """The values of an object, with typed access.  `where` names it in messages."""

    def __init__(self, values: Mapping[str, Any], where: str):
        """Take the values that are not null."""
        self.values = {key: value for key, value in values.items() if value is not None}
        self.where = where

    def __contains__(self, key: str) -> bool:
        """Whether there is a value under a key."""
        return key in self.values

    def refusal(self, key: str, right: str) -> ConfigError:
        """Return the error that says what a value must be."""
        return ConfigError(f"{self.where}: {key} must be {right}, not {shown(self.values.get(key))}")

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number of at least `least`; without a default it must be there."""
        value = self.values.get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not least <= value <= MOST:
            positive = "positive whole number" if least == 1 else f"whole number of at least {least}"
            raise self.refusal(key, f"a {positive} below 2**31")
        return value

    def number(
        self, key: str, default: float | None = None, above: float | None = None, least: float | None = None
    ) -> float:
        """Return a finite number, larger than `above`, or at least `least`; without a default it must be there."""
        value = self.values.get(key, default)
        right = "a finite number"
        if above is not None:
            right = "a positive number" if above == 0 else f"a number above {above:g}"
        elif least is not None:
            right = f"a number of at least {least:g}"
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refusal(key, right)
        # A comparison, before float() could overflow.  NaN fails it.
        if not -_LARGEST <= value <= _LARGEST:
            raise self.refusal(key, right)
        value = float(value)
        in_range = (above is None or value > above) and (least is None or value >= least)
        if not in_range or not math.isfinite(value) or 0 < abs(value) < _SMALLEST:
            raise self.refusal(key, right)
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.refusal(key, "a text")
        return value

    def items(self, key: str, kind: type = object) -> list[Any]:
        """Return a list of items of a type; empty where there is none."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            of = {str: " of texts", int: " of whole numbers"}.get(kind, "")
            raise self.refusal(key, f"a list{of}")
        return value

    def within(self, key: str) -> Fields:
        """Return the object under a key; empty where there is none."""
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            raise self.refusal(key, "an object")
        return Fields(value, f"{self.where}: {key}")
