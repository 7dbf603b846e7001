"""Records: their JSON form, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psynth_jax.data.record import BranchText, Record, read_records, write_records
from psynth_jax.errors import DataError

RECORD = Record("r1", "qa", "Who?", (BranchText("Ann wrote it.", "Title\n"), BranchText("Bob read it.")), "Ann", ("Ann",))
VALUE = RECORD.to_json()


def test_json_form_holds_what_is_not_empty() -> None:
    assert VALUE["branches"] == [{"text": "Ann wrote it.", "prefix": "Title\n"}, {"text": "Bob read it."}]
    assert "meta" not in VALUE and VALUE["answers"] == ["Ann"]


@pytest.mark.parametrize("name", ["records.jsonl", "records.jsonl.gz"])
def test_written_records_are_read_again(tmp_path: Path, name: str) -> None:
    records = [RECORD, Record("r2", "chat", "Und?", (BranchText("Schön.  \n"),), "Ja", meta={"turns": 3})]
    assert write_records(tmp_path / "deep" / name, records) == 2
    assert list(read_records(tmp_path / "deep" / name)) == records
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]


def test_a_failing_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [RECORD])

    def broken():
        yield RECORD
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_records(path, broken())
    assert list(read_records(path)) == [RECORD]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": " "}, "target is empty"),
        ({"query": ""}, "query is empty"),
        ({"branches": []}, "no branches"),
        ({"branches": [{"text": "a"}, {"text": "\n"}]}, "branch 2 is empty"),
        ({"branches": ["a"]}, "branches is no list"),
        ({"branches": [{"text": "a", "kept": "b"}]}, "branches is no list"),
        ({"target": 3}, "target is no text"),
        ({"answers": "Ann"}, "answers is no list"),
        ({"gold": "Ann"}, "unknown gold"),
        ({"id": None}, "missing id"),
        ({"id": 3}, "id is no text"),
    ],
)
def test_wrong_records_are_refused_with_file_and_line(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(VALUE) + "\n\n" + json.dumps(VALUE | change) + "\n")
    with pytest.raises(DataError, match=rf"records\.jsonl:3: .*{said}"):
        list(read_records(path))


def test_missing_keys_are_all_named() -> None:
    with pytest.raises(DataError, match="missing branches; missing target"):
        Record.from_json({"id": "r", "task": "t", "query": "q"})
