"""Fields of rows whose types nobody promises: read them, or say why the row gives no record.

What is not there and what is empty are the same thing here ("" or []); a value of another kind makes the row unfit.
Knows no source.
"""

from __future__ import annotations

import ast
import datetime
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]

_PAIRS = {"[": "]", "{": "}", "(": ")"}


class UnfitError(Exception):
    """The row gives no record; the message is the reason, the same words for all rows that share it."""


def text(value: Any, name: str) -> str:
    """Return a field as stripped text; None is "" and a number is written out.

    Half a surrogate pair, which JSON can spell but no file can hold, becomes "?".  Raises `UnfitError` for other kinds.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnfitError(f"{name} is no text")
    return str(value).encode("utf-8", "replace").decode("utf-8").strip()


def items(value: Any, name: str) -> list[Any]:
    """Return a field as a list; None is [], and a text that spells a list is read.  Raises `UnfitError` for other kinds."""
    value = structure(value)
    if value is None or value == "":
        return []
    if not isinstance(value, list | tuple):
        raise UnfitError(f"{name} is no list")
    return list(value)


def mapping(value: Any, name: str) -> Row:
    """Return a field as a mapping.  Raises `UnfitError` for other kinds."""
    value = structure(value)
    if not isinstance(value, Mapping):
        raise UnfitError(f"{name} is no object")
    return value


def structure(value: Any) -> Any:
    """Return what a text spells when it looks like a JSON or Python list or object; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    read = literal(value)
    return value if read is None else read


def literal(spelled: str) -> Any:
    """Read JSON, else a Python literal; None for what is neither."""
    try:
        return json.loads(spelled)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # backslashes that Python does not know
            return ast.literal_eval(spelled.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def balanced(content: str, start: int) -> str | None:
    """Return the bracketed piece that begins at `start`, brackets inside quotes not counted; None if it never closes."""
    closers: list[str] = []
    quote = ""
    position = start
    while position < len(content):
        char = content[position]
        if quote:
            if char == "\\":
                position += 1
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in _PAIRS:
            closers.append(_PAIRS[char])
        elif closers and char == closers[-1]:
            closers.pop()
            if not closers:
                return content[start : position + 1]
        position += 1
    return None


def digest(*parts: str) -> str:
    """Return 12 hexadecimal digits that stand for texts: the id of a row that has none, wherever it stands in its file."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:12]


def kept(row: Row, *names: str) -> dict[str, Any]:
    """Return the named fields that are texts, numbers, truth values or times, as JSON values."""
    found: dict[str, Any] = {}
    for name in names:
        value = row.get(name)
        if isinstance(value, datetime.datetime | datetime.date):
            found[name] = value.isoformat()
        elif isinstance(value, str) and value:
            found[name] = text(value, name)
        elif isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            found[name] = value
    return found


def as_json(value: Any) -> str:
    """Write a value as JSON on one line; what JSON has no form for is written as Python writes it."""
    try:
        written = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # keys that are no texts, or an object without end
        raise UnfitError("a value has no JSON form") from None
    return text(written, "value")
