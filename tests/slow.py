"""Parameters of tests, of which a few are in the fast run and the others are slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Return the values as parameters, marked slow where they are not among `fast`."""
    parameters = []
    for value in values:
        if value in fast:
            parameters.append(value)
        elif isinstance(value, tuple):
            parameters.append(pytest.param(*value, marks=pytest.mark.slow))
        else:
            parameters.append(pytest.param(value, marks=pytest.mark.slow))
    return parameters
