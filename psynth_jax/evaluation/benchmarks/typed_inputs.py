"""Inputs of MBPP+ get back the types that JSON took from them.

    assertion   f((1, 2), {3}) == 4        base_input   [[1, 2], [3]]
    so          tuple, set                 plus_input   [[5, 6, 7], [8]] -> (5, 6, 7), {8}

The assertions of a row call the function with its base inputs, as Python writes them.  Whoever
compares the two learns where a list was a tuple or a set, a text a complex number, a key an
integer.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from psynth_jax.errors import DataError, shown


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a JSON value was in Python.

    kind: "tuple", "set", "list", "dict", "int keys", "complex", or "" where JSON has the value as
    it was.  inner: of all that is inside.
    """

    kind: str = ""
    inner: Shape | None = None


_PLAIN = Shape()
_SERIES: dict[type, str] = {tuple: "tuple", set: "set", list: "list", frozenset: "set"}


def with_types(where: str, inputs: Sequence[list[Any]], shapes: Sequence[Shape]) -> list[list[Any]]:
    """Return inputs, each a list of arguments, whose values are what the shapes say.

    Raises `DataError` naming the line where one cannot be that: a set of lists.
    """
    typed = []
    for arguments in inputs:
        padded = [*shapes, *[_PLAIN] * (len(arguments) - len(shapes))]
        pairs = zip(arguments, padded, strict=False)
        try:
            typed.append([apply(value, shape) for value, shape in pairs])
        except (TypeError, ValueError) as error:
            told = f"the input {shown(arguments)} is of another kind than the assertions"
            raise DataError(f"{where}: {told}: {error}") from None
    return typed


def shapes_of(assertions: str, entry_point: str, base: Sequence[list[Any]]) -> list[Shape]:
    """Return the shape of each argument, as the calls in the assertions tell of it.

    A call that is not made of literals, or is made with none of the base inputs, tells nothing.
    """
    shapes: list[Shape] = []
    for called in _calls(assertions, entry_point):
        plain = _as_json(called)
        for arguments in base:
            if plain == _as_json(arguments) or _are_texts_of(called, arguments):
                pairs = zip(arguments, called, strict=True)
                found = [_shape(value, spelled) for value, spelled in pairs]
                shapes = _merged_all(shapes, found)
    # Where all base inputs are numbers, a text among the others is one that JSON cannot write.
    for index in range(len(shapes)):
        column = [arguments[index] for arguments in base if index < len(arguments)]
        if all(_is_real(value) for value in column):
            shapes[index] = Shape("complex")
    return shapes


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def apply(value: Any, shape: Shape) -> Any:
    """Return a JSON value as the Python value that a shape says it was."""
    inner = shape.inner or _PLAIN
    if shape.kind == inner.kind == "tuple" and not (inner.inner and inner.inner.kind):
        # Tuples inside of tuples: the base inputs do not say how deep, so all lists below are some.
        inner = Shape("tuple", Shape("tuple"))
    if isinstance(value, list):
        parts = [apply(part, inner) for part in value]
        if shape.kind == "set":
            return set(parts)
        return tuple(parts) if shape.kind == "tuple" else parts
    if isinstance(value, dict):
        found: dict[Any, Any] = {}
        for key, part in value.items():
            typed_key = int(key) if shape.kind == "int keys" else key
            found[typed_key] = apply(part, inner)
        return found
    if shape.kind == "complex" and isinstance(value, str):
        try:
            return complex(value)
        except ValueError:
            return value  # a test of what a function does with a text
    return value


def _calls(assertions: str, entry_point: str) -> Iterable[list[Any]]:
    for node in ast.walk(ast.parse(assertions)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id == entry_point:
            try:
                yield [ast.literal_eval(argument) for argument in node.args]
            except (ValueError, TypeError, RecursionError):  # no literals, or a set of lists
                continue


def _as_json(value: Any) -> str:
    def plain(part: Any) -> Any:
        return sorted(part, key=repr) if isinstance(part, set | frozenset) else str(part)

    try:
        return json.dumps(value, default=plain)
    except TypeError:  # keys that JSON has not: no base input is equal
        return ""


def _are_texts_of(called: Sequence[Any], arguments: Sequence[Any]) -> bool:
    """Return whether the base input has numbers as texts: complex numbers have no form in JSON."""
    if len(called) != len(arguments):
        return False
    for number, spelled in zip(called, arguments, strict=True):
        if not isinstance(number, int | float | complex) or not isinstance(spelled, str):
            return False
        try:
            if complex(spelled) != number:
                return False
        except ValueError:
            return False
    return True


def _shape(value: Any, spelled: Any) -> Shape:
    if isinstance(value, str) and isinstance(spelled, int | float | complex):
        return Shape("complex")
    if isinstance(value, list) and type(spelled) in _SERIES:
        kind = _SERIES[type(spelled)]
        ordered = sorted(spelled, key=repr) if kind == "set" else spelled
        inner = [_shape(part, was) for part, was in zip(value, ordered, strict=False)]
        return Shape(kind, _merged(inner))
    if isinstance(value, dict) and isinstance(spelled, dict):
        has_numbers = any(isinstance(key, int) for key in spelled)
        pairs = zip(value.values(), spelled.values(), strict=False)
        inner = [_shape(part, was) for part, was in pairs]
        return Shape("int keys" if has_numbers else "dict", _merged(inner))
    return _PLAIN


def _merged(shapes: Sequence[Shape]) -> Shape | None:
    result: Shape | None = None
    for shape in shapes:
        result = shape if result is None else _merge(result, shape)
    return result


def _merge(one: Shape, other: Shape) -> Shape:
    if not one.kind or not other.kind:
        return one if one.kind else other
    if one.kind != other.kind:
        return _PLAIN
    inner = [shape for shape in (one.inner, other.inner) if shape is not None]
    return Shape(one.kind, _merged(inner))


def _merged_all(before: Sequence[Shape], found: Sequence[Shape]) -> list[Shape]:
    if not before:
        return list(found)
    return [_merge(*pair) for pair in zip(before, found, strict=False)]
