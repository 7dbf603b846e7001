"""Rows of EvalPlus's releases: JSON lines with infinite numbers, inputs, tolerance of floats."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psynth_jax.data.sources.rows import PlacedRow
from psynth_jax.data.text_files import text_lines
from psynth_jax.errors import DataError, shown
from psynth_jax.evaluation.benchmarks import row_fields
from psynth_jax.evaluation.benchmarks.row_fields import Row


def release_rows(path: Path, shown_path: str) -> Iterator[PlacedRow]:
    """Go through the rows of a release, plain or gzipped.

    Elsewhere this library takes the words NaN and Infinity in JSON for missing values; here they
    are inputs.  Raises `DataError` naming the file and the line.
    """
    for number, line in text_lines(path, shown_path):
        if not line.strip():
            continue
        where = f"{shown_path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: a row is a JSON object, not {type(row).__name__}")
        yield where, row


def inputs_of(where: str, row: Row, name: str) -> list[list[Any]]:
    """Return inputs, each a list of arguments.

    Raises `DataError` naming the line and the field where they are missing or of another kind.
    """
    if row.get(name) == {}:
        return []  # what the release has where a problem has no further inputs
    inputs = row_fields.items(where, row, name)
    for arguments in inputs:
        if not isinstance(arguments, list):
            told = f"{name!r} must hold lists of arguments, not {shown(arguments)}"
            raise DataError(f"{where}: {told}")
    return inputs


def atol_of(where: str, row: Row) -> float:
    """Return how far floats may be off; 0 where the row does not say.

    Raises `DataError` for what is no number from 0.
    """
    value = row.get("atol") or 0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise DataError(f"{where}: 'atol' must be a number from 0, not {shown(value)}")
    return float(value)
