"""JSON objects of files that others wrote, with values that are checked as they are taken.

A value of the wrong kind is an error of one line: the file, the line in it, the key, and what would
be right.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psynth_jax.errors import DataError, InputError, shown
from psynth_jax.files import read_text, refuse_special


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its 95% interval; low and high are None where nobody computed one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def crosses_zero(self) -> bool:
        """Whether 0 is inside of the interval; an interval that is not known may hold anything."""
        if self.low is None or self.high is None:
            return True
        return self.low <= 0 <= self.high


class JsonObject:
    """An object and the place that it comes from.  An absent key and null both mean: no value."""

    def __init__(self, value: Any, where: str):
        """Take a value.  Raises `DataError` when it is not an object."""
        if not isinstance(value, dict):
            raise DataError(f"{where}: {shown(value)} is not a JSON object")
        self.values: dict[str, Any] = value
        self.where = where

    def wrong(self, name: str, right: str) -> DataError:
        """Return the error for a key whose value is of the wrong kind."""
        value = self.values.get(name)
        return DataError(f"{self.where}: its {name} is {shown(value)}; it must be {right}")

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text.  Raises `DataError` for another value, and for none without a default."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def number(self, name: str) -> float | None:
        """Return a number of at least 0, None for no value.  Raises `DataError` for others."""
        value = self.values.get(name)
        if value is None:
            return None
        found = finite(value)
        if found is None or found < 0:
            raise self.wrong(name, "a number of at least 0")
        return found

    def signed(self, name: str) -> float | None:
        """Return a number of any sign, None for no value.  Raises `DataError` for others."""
        found = finite(self.values.get(name))
        if found is None and self.values.get(name) is not None:
            raise self.wrong(name, "a number")
        return found

    def count(self, name: str) -> int:
        """Return a number that counts, 0 for no value.  Raises `DataError` as `number`."""
        return round(self.number(name) or 0)

    def share(self, name: str) -> float:
        """Return a number from 0 to 1.  Raises `DataError` for another value, and for none."""
        found = finite(self.values.get(name))
        if found is None or not 0 <= found <= 1:
            raise self.wrong(name, "a number from 0 to 1")
        return found

    def object(self, name: str) -> JsonObject | None:
        """Return an object inside of it, None for no value.  Raises `DataError` for others."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return JsonObject(value, f"{self.where}: {name}")

    def objects(self, name: str) -> list[JsonObject]:
        """Return the objects of a list, none for no value.  Raises `DataError` for others."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "a list of objects")
        return [JsonObject(each, f"{self.where}: {name}") for each in value]

    def interval(self, name: str, middle: str) -> Interval | None:
        """Return {middle, "low", "high"} under a key, None for no value.

        Raises `DataError` where one of the three is not a number.
        """
        own = self.object(name)
        if own is None:
            return None
        found = []
        for key in (middle, "low", "high"):
            number = finite(own.values.get(key))
            if number is None:
                raise own.wrong(key, "a number")
            found.append(number)
        return Interval(*found)


def finite(value: object) -> float | None:
    """Return a finite number as a float; None for everything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return found if math.isfinite(found) else None


def read_object(path: Path) -> JsonObject:
    """Read a file that holds one object.

    Raises:
      InputError: the file cannot be read.
      DataError: it does not hold one JSON object.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    return JsonObject(value, str(path))


def read_lines(path: Path) -> Iterator[JsonObject]:
    """Go through the objects of a file of JSON lines.

    A last line without an end is still being written, or never will be: it is left out.

    Raises:
      InputError: the file cannot be read.
      DataError: a line is damaged; the message is "file:line: ...".
    """
    refuse_special(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    whole = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(whole.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{where}: not JSON: {reason}; take the line out") from None
        yield JsonObject(value, where)
