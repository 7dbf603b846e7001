"""Parameters of tests, of which a few are in the fast run, and the others are slow, or exhaustive."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Return the values as parameters, marked slow where they are not among `fast`."""
    return [value if value in fast else _marked(value, pytest.mark.slow) for value in values]


def exhaustive_but(values: Iterable[Any], *, fast: Container[Any] = (), full: Container[Any] = ()) -> list[Any]:
    """Return the values as parameters, marked slow where they are in `full`, and exhaustive where they are in neither."""
    parameters = []
    for value in values:
        if value in fast:
            parameters.append(value)
        elif value in full:
            parameters.append(_marked(value, pytest.mark.slow))
        else:
            parameters.append(_marked(value, pytest.mark.slow, pytest.mark.exhaustive))
    return parameters


def _marked(value: Any, *marks: pytest.MarkDecorator) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=marks)
