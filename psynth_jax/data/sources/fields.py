"""Fields of rows whose types nobody promises: read them, or say why the row gives no record.

What is not there, what is missing (`data.missing`) and what is empty are the same thing here ("" or []); a value of another
kind makes the row unfit.  Knows no source.
"""

from __future__ import annotations

import ast
import datetime
import hashlib
import json
import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

from psynth_jax.data.missing import TooDeepError, number_text, without_missing

Row: TypeAlias = Mapping[str, Any]

_TRUTH = {"": False, "false": False, "no": False, "0": False, "true": True, "yes": True, "1": True}
_PAIRS = {"[": "]", "{": "}", "(": ")"}


class UnfitError(Exception):
    """The row gives no record; the message is the reason, the same words for all rows that share it."""


def text(value: Any, name: str) -> str:
    """Return a field as stripped text; what is missing is "", and a number is written out, without ".0".

    Raises `UnfitError` for other kinds, and for half a surrogate pair, which no file can hold.
    """
    value = _plain(value)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnfitError(f"{name} is no text")
    try:
        spelled = value if isinstance(value, str) else number_text(value)
        spelled.encode()
    except UnicodeEncodeError:
        raise UnfitError(f"{name} is not Unicode text") from None
    except ValueError:  # an integer of thousands of digits
        raise UnfitError(f"{name} is no text") from None
    return spelled.strip()


def identifier(value: Any) -> str:
    """Return what names something, such as a call: a text, or a number written out; "" for any other kind."""
    try:
        return text(value, "an identifier")
    except UnfitError:
        return ""


def is_true(value: Any, name: str) -> bool:
    """Return a field as a truth value; what is missing is false.  Raises `UnfitError` for what is none."""
    value = _plain(value)
    if isinstance(value, str):
        value = _TRUTH.get(value.strip().lower())
        if value is None:
            raise UnfitError(f"{name} is neither true nor false")
    if value is None or isinstance(value, bool | int | float):
        return bool(value)
    raise UnfitError(f"{name} is neither true nor false")


def items(value: Any, name: str) -> list[Any]:
    """Return a field as a list; what is missing is [], and a text that spells a list is read.

    Raises `UnfitError` for other kinds.
    """
    value = structure(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if not isinstance(value, list):
        raise UnfitError(f"{name} is no list")
    return value


def mapping(value: Any, name: str) -> Row:
    """Return a field as a mapping.  Raises `UnfitError` for other kinds."""
    value = structure(value)
    if not isinstance(value, Mapping):
        raise UnfitError(f"{name} is no object")
    return value


def structure(value: Any) -> Any:
    """Return what a text spells when it looks like a JSON or Python list or object; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return _plain(value)
    read = literal(value)
    return value if read is None else read


def literal(spelled: str) -> Any:
    """Read JSON, else a Python literal, with None for what is missing; None for what is neither."""
    try:
        return without_missing(json.loads(spelled))
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # backslashes that Python does not know
            return without_missing(ast.literal_eval(spelled.strip()))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _plain(value: Any) -> Any:
    try:
        return without_missing(value)
    except TooDeepError as error:
        raise UnfitError(str(error)) from None


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
        value = _plain(row.get(name))
        if isinstance(value, datetime.datetime | datetime.date):
            found[name] = value.isoformat()
        elif isinstance(value, str) and value:
            found[name] = text(value, name)
        elif isinstance(value, float) and value.is_integer():
            found[name] = int(value)  # of a column of integers that has gaps
        elif isinstance(value, bool | int | float):
            found[name] = value
    return found


def as_json(value: Any) -> str:
    """Write a value as JSON on one line, null for what is missing.

    What JSON has no form for is written as Python writes it.  Raises `UnfitError` where that fails.
    """
    try:
        written = json.dumps(_plain(value), ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # keys that are no texts, or an object without end
        raise UnfitError("a value has no JSON form") from None
    return text(written, "value")
