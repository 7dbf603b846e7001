"""Fields of a benchmark's rows: read them, or say which field of which line is missing or wrong.

A field may have several names, one for each form in which a data set is passed around.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from psynth_jax.errors import DataError, listing, shown

Row: TypeAlias = Mapping[str, Any]


def text(where: str, row: Row, *names: str) -> str:
    """Return the first of several fields that is there, as stripped text.

    A whole number is written out.  Raises `DataError` naming the line and the field where none of
    them is there, is empty, or is no text.
    """
    name, value = _first(where, row, names)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name!r} must be a text that is not empty, not {shown(value)}")
    return value.strip()


def code(where: str, row: Row, *names: str) -> str:
    """Return the first of several fields that is there, as it stands: white space is part of it.

    Raises `DataError` as `text` does.
    """
    name, value = _first(where, row, names)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name!r} must be a text that is not empty, not {shown(value)}")
    return value


def items(where: str, row: Row, *names: str) -> list[Any]:
    """Return the first of several fields that is there, as a list; it may be empty.

    Raises `DataError` naming the line and the field where none of them is there or is no list.
    """
    name, value = _first(where, row, names)
    if not isinstance(value, list):
        raise DataError(f"{where}: {name!r} must be a list, not {shown(value)}")
    return value


def identifier(row: Row, number: int, *names: str) -> str:
    """Return the row's own id as text, or its number where it has none."""
    for name in (*names, "id", "task_id"):
        value = row.get(name)
        if isinstance(value, int | str) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    return str(number)


def _first(where: str, row: Row, names: tuple[str, ...]) -> tuple[str, Any]:
    for name in names:
        if row.get(name) is not None:
            return name, row[name]
    told = listing([repr(name) for name in names], " or ")
    raise DataError(f"{where}: the row lacks the field {told}")
