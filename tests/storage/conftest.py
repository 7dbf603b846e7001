"""A bucket in memory for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage.memory import MemoryStore


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryStore:
    """Every address of a bucket leads to this store; copies lie in a cache of the test."""
    made = MemoryStore()
    made.install(monkeypatch)
    monkeypatch.setenv("PSYNTH_CACHE", str(tmp_path / "cache"))
    return made
