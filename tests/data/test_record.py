"""Records: their JSON form, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

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


class TestNotUnicode:
    """Half of a surrogate pair is refused before anything is tokenised or written, in whatever text it is."""

    HALF = "a\ud83d"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                {"id": HALF},
                r"record 'a\\ud83d': its id is not Unicode text: half of a surrogate pair \(\\ud83d\) at character 2",
            ),
            ({"task": HALF}, "its task is not Unicode"),
            ({"query": HALF}, "its query is not Unicode"),
            ({"target": HALF}, "its target is not Unicode"),
            ({"branches": [{"text": HALF}]}, "branch 1 is not Unicode"),
            ({"branches": [{"text": "a"}, {"text": "b", "prefix": HALF}]}, "the prefix of branch 2 is not Unicode"),
            ({"answers": ["a", HALF]}, "answer 2 is not Unicode"),
            ({"meta": {"a": [HALF]}}, "its meta has no JSON form"),
            ({"meta": {HALF: 1}}, "its meta has no JSON form"),
            ({HALF: 1}, r"unknown a\\ud83d"),
        ],
    )
    def test_is_refused_with_file_and_line(self, tmp_path: Path, change: dict[str, object], said: str) -> None:
        path = tmp_path / "records.jsonl"
        path.write_text(json.dumps(VALUE) + "\n" + json.dumps(VALUE | change) + "\n")
        with pytest.raises(DataError, match=rf"records\.jsonl:2: .*{said}") as raised:
            list(read_records(path))
        str(raised.value).encode()

    def test_a_whole_pair_is_a_character(self, tmp_path: Path) -> None:
        path = tmp_path / "records.jsonl"
        path.write_text(json.dumps(VALUE | {"query": "\U0001f600"}))  # which spells a pair
        assert next(read_records(path)).query == "\U0001f600"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": 3}, "its id is no text"),
        ({"branches": (BranchText(b"a"),)}, "branch 1 is no text"),  # type: ignore[arg-type]
        ({"answers": (None,)}, "answer 1 is no text"),
        ({"id": "a\0"}, "its id has a NUL character"),
        ({"meta": {"a": float("nan")}}, "its meta has no JSON form"),
        ({"meta": {"a": b"b"}}, "its meta has no JSON form"),
    ],
)
def test_records_made_in_python_are_checked_too(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        dataclasses.replace(RECORD, **change)


def test_nul_in_a_text_is_a_character(tmp_path: Path) -> None:
    record = dataclasses.replace(RECORD, query="a\0b")
    write_records(tmp_path / "r.jsonl", [record])
    assert list(read_records(tmp_path / "r.jsonl")) == [record]


def test_deep_meta_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(VALUE) + "\n" + json.dumps(VALUE)[:-1] + ', "meta": {"a": ' + "[" * 300 + "]" * 300 + "}}")
    with pytest.raises(DataError, match=r"records\.jsonl:2: lists and objects are nested more than 100 deep"):
        list(read_records(path))


class TestWhereTheyAreWritten:
    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "r.jsonl").symlink_to(tmp_path / "disk" / "real.jsonl")
        write_records(tmp_path / "r.jsonl", [RECORD])
        assert (tmp_path / "r.jsonl").is_symlink() and list(read_records(tmp_path / "disk" / "real.jsonl")) == [RECORD]

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "fifo")
        for name, said in (("folder", "it is a directory"), ("fifo", "is not a regular file")):
            with pytest.raises(DataError, match=said):
                write_records(tmp_path / name, [RECORD])
        with pytest.raises(DataError, match="cannot write /dev/stdout: give the name of a file"):
            write_records("/dev/stdout", [RECORD])
        assert (tmp_path / "fifo").is_fifo() and sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "folder"]

    def test_mode_is_that_of_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "other").touch()
        for name in ("r.jsonl", "r.jsonl.gz"):
            write_records(tmp_path / name, [RECORD])
            assert (tmp_path / name).stat().st_mode == (tmp_path / "other").stat().st_mode
