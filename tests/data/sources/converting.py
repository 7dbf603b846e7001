"""Convert rows in tests as the library does, and tell records from reasons."""

from __future__ import annotations

from typing import Any

from psynth_jax.data.record import Record
from psynth_jax.data.sources import SOURCES, Dropped, convert_rows


def convert(name: str, *rows: Any, **options: Any) -> list[Record | Dropped]:
    source = SOURCES[name]
    return list(convert_rows(source, [(f"rows:{n}", row) for n, row in enumerate(rows, 1)], source.options.parse(options)))


def record(name: str, row: Any, **options: Any) -> Record:
    """Convert a row that must give one record."""
    (item,) = convert(name, row, **options)
    assert isinstance(item, Record), item
    return item


def reason(name: str, row: Any, **options: Any) -> str:
    """Convert a row that must be dropped, and return why."""
    (item,) = convert(name, row, **options)
    assert isinstance(item, Dropped), item
    return item.reason
