"""The user's table of tilings: what is read, what is kept, and that it is replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from psynth_jax.bench.tuning_file import install_tilings, record, table_file
from psynth_jax.errors import UserError
from psynth_jax.ops.branch_attention import tuned
from psynth_jax.ops.branch_attention.tuned import Key
from psynth_jax.ops.branch_attention.tuning_xla import XlaTiles


def key(slots: int) -> Key:
    return Key.of("xla", tokens=1, group=3, kv_heads=3, width=64, itemsize=4, cached=4, slots=slots)


def entry(slots: int) -> dict[str, Any]:
    return {"tiles": {"tokens": 1, "slots": slots}, "seconds": 0.5}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PSYNTH_CACHE", str(tmp_path))
    yield tmp_path
    tuned.install(None)


@pytest.fixture
def kind() -> str:
    return tuned.local_kind()


def entries(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())["entries"]


def test_a_file_per_kind_of_device(folder: Path) -> None:
    assert table_file("NVIDIA H100 80GB HBM3") == folder / "tuned" / "nvidia-h100-80gb-hbm3.json"


def test_without_a_file_there_is_nothing_to_install(kind: str) -> None:
    install_tilings()
    assert tuned.installed() == tuned.shipped(kind)


def test_what_was_recorded_is_installed(kind: str) -> None:
    record(kind, {key(512): entry(64)})
    install_tilings()
    assert tuned.installed().tilings == {**tuned.shipped(kind).tilings, key(512): XlaTiles(1, 64)}


def test_entries_are_merged_replaced_and_taken_out(kind: str) -> None:
    file = record(kind, {key(512): entry(64), key(1024): entry(64)})
    record(kind, {key(1024): entry(256), key(2048): entry(128)})
    assert entries(file) == {str(key(512)): entry(64), str(key(1024)): entry(256), str(key(2048)): entry(128)}
    record(kind, {key(512): None, key(4096): None})
    assert set(entries(file)) == {str(key(1024)), str(key(2048))}


def test_nothing_to_record_makes_no_file(kind: str) -> None:
    assert not record(kind, {key(512): None}).exists()


def test_a_write_that_fails_leaves_the_table_as_it_was(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = record(kind, {key(512): entry(64)})
    before = file.read_text()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(UserError, match=rf"cannot write the tilings to {file}: No space left on device; set PSYNTH_CACHE"):
        record(kind, {key(512): entry(128)})
    assert file.read_text() == before
    assert list(file.parent.iterdir()) == [file]


def test_what_cannot_be_used_is_not_written(kind: str) -> None:
    with pytest.raises(UserError, match="slots 1024 is more than 512"):
        record(kind, {key(512): entry(1024)})
    assert not table_file(kind).exists()


def test_a_damaged_file_is_named_and_kept(kind: str) -> None:
    file = record(kind, {key(512): entry(64)})
    file.write_text("{")
    for use in (install_tilings, lambda: record(kind, {key(512): entry(64)})):
        with pytest.raises(UserError, match=f"^{file} is no table of tilings"):
            use()
    assert file.read_text() == "{"
    file.write_bytes(b"\xff")
    with pytest.raises(UserError, match="not a UTF-8 text file"):
        install_tilings()


def test_a_damaged_entry_is_named(kind: str) -> None:
    file = record(kind, {key(512): entry(64)})
    file.write_text(file.read_text().replace('"slots": 64', '"slots": 4096'))
    with pytest.raises(UserError, match=rf"^{file}: the entry '{key(512)}' does not fit: slots 4096 is more than 512"):
        install_tilings()


def test_several_processes_leave_each_hosts_own_file_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record(kind, {key(512): entry(64)})
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    install_tilings()
    assert tuned.installed() == tuned.shipped(kind)
