"""The metadata of a GGUF file, read strictly: every value has the type and the range that its reader asks for.

A file can hold any type under any key.  What is wrong is a `CheckpointError` that names the file, the key, what is there
and what is right.  Knows neither bytes nor models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from psynth_jax.errors import CheckpointError, shown

LARGEST_COUNT = 2**31 - 1  # what an int32 index holds
_REQUIRED: Final[Any] = object()

Default = TypeVar("Default")


class Metadata(Mapping[str, Any]):
    """key -> bool, int, float, str, or a list of them.

    A default is returned where the key is absent, never for a wrong value.  Every method raises `CheckpointError` for a
    value of the wrong type or range, and for a key that is absent without a default.
    """

    def __init__(self, values: Mapping[str, Any], where: str | Path = "the GGUF file"):
        """Take the values; `where` names the file in errors."""
        self._values = dict(values)
        self.where = where

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def only(self, *prefixes: str) -> Metadata:
        """Return the part whose keys begin with one of these."""
        return Metadata({key: value for key, value in self.items() if key.startswith(prefixes)}, self.where)

    def text(self, key: str, default: str | Default = _REQUIRED) -> str | Default:
        """Return a text."""
        value = self._value(key, default)
        if key in self and not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def flag(self, key: str, default: bool | Default = _REQUIRED) -> bool | Default:
        """Return a bool."""
        value = self._value(key, default)
        if key in self and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def count(
        self, key: str, default: int | Default = _REQUIRED, least: int = 1, most: int = LARGEST_COUNT
    ) -> int | Default:
        """Return a whole number from `least` to `most`."""
        value = self._value(key, default)
        if key in self and not (type(value) is int and least <= value <= most):
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | Default = _REQUIRED, above: float = -math.inf) -> float | Default:
        """Return a finite number that is larger than `above`."""
        value = self._value(key, default)
        if key not in self:
            return value
        if type(value) not in (int, float) or not math.isfinite(value) or not value > above:
            raise self.wrong(key, "a finite number" if above == -math.inf else f"a finite number above {above:g}")
        return float(value)

    def texts(self, key: str, default: list[str] | Default = _REQUIRED) -> list[str] | Default:
        """Return an array of texts."""
        value = self._value(key, default)
        if key in self and not (isinstance(value, list) and set(map(type, value)) <= {str}):
            raise self.wrong(key, "an array of texts")
        return value

    def counts(
        self, key: str, default: list[int] | Default = _REQUIRED, least: int = 0, most: int = LARGEST_COUNT
    ) -> list[int] | Default:
        """Return an array of whole numbers from `least` to `most`."""
        value = self._value(key, default)
        if key not in self:
            return value
        if not isinstance(value, list) or set(map(type, value)) - {int}:
            raise self.wrong(key, "an array of whole numbers")
        if value and not (least <= min(value) and max(value) <= most):
            raise self.wrong(key, f"an array of whole numbers from {least} to {most}")
        return value

    def numbers(self, key: str, default: list[float] | Default = _REQUIRED) -> list[float] | Default:
        """Return an array of finite numbers."""
        value = self._value(key, default)
        if key not in self:
            return value
        numeric = isinstance(value, list) and set(map(type, value)) <= {int, float}
        if not numeric or not all(map(math.isfinite, value)):
            raise self.wrong(key, "an array of finite numbers")
        return value

    def wrong(self, key: str, right: str) -> CheckpointError:
        """Return the error that says what is at `key`, and what is right."""
        return CheckpointError(f"{self.where}: metadata {key} must be {right}, not {_shown(self[key])}")

    def _value(self, key: str, default: Any) -> Any:
        if key in self:
            return self[key]
        if default is _REQUIRED:
            raise CheckpointError(f"{self.where} has no metadata {key}")
        return default


def _shown(value: object) -> str:
    """Spell a value for one line of an error, however long it is."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"an array of {len(value)}"
    return shown(value)
