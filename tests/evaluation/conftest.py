"""Questions for tests: short, with branches that differ, some with the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from psynth_jax.data.record import BranchText, Record, write_records

CITIES = ("Oslo", "Rome", "Oslo", "Bern", "Rome")


def record(number: int, answer: str, task: str = "cities", branches: Sequence[BranchText] = ()) -> Record:
    given = tuple(branches) or (
        BranchText(f"{answer} has harbour {number}.", "\n" * (number == 2)),
        BranchText(f"Note {number * 'x'}", "Before: "),
    )
    return Record(f"q{number}", task, f"Which city has harbour {number}?", given, answer, (answer, f"{answer} city"))


@pytest.fixture
def records() -> list[Record]:
    return [record(number, city) for number, city in enumerate(CITIES)]


@pytest.fixture
def data(tmp_path: Path, records: list[Record]) -> Path:
    path = tmp_path / "cities.jsonl"
    write_records(path, records)
    return path
