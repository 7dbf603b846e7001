"""The lettered options of a row, in each of the forms in which data sets hold them.

    {"A": "one", "B": "two"}                            an object; what is null is no option
    [{"key": "A", "value": "one"}, ...]                 a list of objects
    {"label": ["A", "B"], "text": ["one", "two"]}       columns, of a table on the hub
    ["one", "two"]                                      a list: the first is A

Options that have letters keep them; they are returned in the order of the letters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from psynth_jax.errors import DataError, shown
from psynth_jax.evaluation.benchmarks.letters import LETTERS


def lettered_options(where: str, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return letters and texts, in the order of the letters, which begin with A without a gap.

    Raises `DataError` that begins with `where` for a row without 'options', for options of another
    form, for letters with a gap or one that comes twice, and for an option that is neither a number
    nor a text that is not empty.
    """
    found = []
    for key, option in _pairs(where, row):
        letter = str(key).strip().upper()
        found.append((letter, _text(where, letter, option)))
    found.sort()
    letters = [letter for letter, _ in found]
    if letters != list(LETTERS[: len(found)]) or len(found) < 2:
        raise DataError(f"{where}: 'options' must have the letters A, B, ..., not {shown(letters)}")
    return found


def _pairs(where: str, row: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    value = row.get("options")
    if value is None:
        told = "an object of letters and texts, or a list"
        raise DataError(f"{where}: the row lacks the field 'options', {told}")
    if isinstance(value, Mapping):
        if value.keys() == {"label", "text"}:
            return _of_columns(where, value["label"], value["text"])
        # Tables of the hub have a column for every letter that any row has, null in others.
        return [(letter, option) for letter, option in value.items() if option is not None]
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise DataError(f"{where}: 'options' must be an object, or a list of 2 to {len(LETTERS)}")
    if all(isinstance(entry, Mapping) for entry in value):
        return [(entry.get("key"), entry.get("value")) for entry in value]
    return list(zip(LETTERS, value, strict=False))


def _of_columns(where: str, letters: object, texts: object) -> list[tuple[Any, Any]]:
    if isinstance(letters, list) and isinstance(texts, list) and len(letters) == len(texts):
        return list(zip(letters, texts, strict=True))
    raise DataError(f"{where}: 'label' and 'text' of 'options' must be lists of one length")


def _text(where: str, letter: str, option: object) -> str:
    if isinstance(option, int | float) and not isinstance(option, bool) and math.isfinite(option):
        return str(option)
    if not isinstance(option, str) or not option.strip():
        told = f"a number or a text that is not empty, not {shown(option)}"
        raise DataError(f"{where}: option {shown(letter)} must be {told}")
    return option.strip()
