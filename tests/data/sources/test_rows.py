"""Rows of files, directories and the hub: every format, the place of every row, and what is wrong with damaged ones."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow
import pytest
from huggingface_hub import errors
from huggingface_hub.hf_api import DatasetInfo, RepoSibling
from pyarrow import parquet

from psynth_jax.data import text_files
from psynth_jax.data.sources.rows import read_rows
from psynth_jax.errors import DataError

ROWS = [{"a": n, "deep": [{"text": f"é{n}"}]} for n in range(5)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
        return path
    lines = ".jsonl" in path.name
    content = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows, indent=1)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


class TestFiles:
    @pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.json.gz", "x.parquet"])
    def test_every_format_gives_the_same_rows_and_their_places(self, tmp_path: Path, name: str) -> None:
        path = write(tmp_path / name, ROWS)
        assert list(read_rows(path)) == [(f"{path}:{n}", row) for n, row in enumerate(ROWS, 1)]

    def test_json_lines_under_another_name(self, tmp_path: Path) -> None:
        write(tmp_path / "x.jsonl", ROWS).rename(tmp_path / "x.json")
        assert [row for _, row in read_rows(tmp_path / "x.json")] == ROWS

    def test_tab_separated(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tsv"
        path.write_text('one "quoted"\tline 1\\nline 2\nthree\tfour\n', encoding="utf-8")
        rows = [row for _, row in read_rows(path, columns=("q", "a"))]
        assert rows == [{"q": 'one "quoted"', "a": "line 1\nline 2"}, {"q": "three", "a": "four"}]
        path.write_text("q\ta\nthree\tfour\n", encoding="utf-8")
        for columns in ((), ("q", "a")):
            assert list(read_rows(path, columns=columns)) == [(f"{path}:2", {"q": "three", "a": "four"})]

    @pytest.mark.parametrize("form", ["plain", "mark", "crlf", "gz"])
    def test_tables(self, tmp_path: Path, form: str) -> None:
        long = "x" * 300_000  # more than Python's csv module takes by itself
        for ending, content in (
            ("tsv", f'q\ta\n\nwho, "me\tl1\\nl2 {long}\n'),
            ("csv", f'q,a\n\n"who, ""me","l1\nl2 {long}"\n'),
        ):
            data = content.replace("\n", "\r\n").encode() if form == "crlf" else content.encode()
            data = b"\xef\xbb\xbf" + data if form == "mark" else data
            path = tmp_path / f"x.{ending}{'.gz' if form == 'gz' else ''}"
            path.write_bytes(gzip.compress(data) if form == "gz" else data)
            limit = csv.field_size_limit()
            assert [row for _, row in read_rows(path)] == [{"q": 'who, "me', "a": f"l1\nl2 {long}"}]
            assert csv.field_size_limit() == limit

    def test_a_line_has_a_longest_size(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(text_files, "LONGEST_LINE", 100)
        monkeypatch.setattr(text_files, "CHUNK", 16)
        (tmp_path / "x.tsv").write_text("q\ta\n" + "b" * 90 + "\tc\n" + "d" * 200 + "\te\n")
        rows = read_rows(tmp_path / "x.tsv")
        assert next(rows)[1] == {"q": "b" * 90, "a": "c"}
        with pytest.raises(DataError, match=r"x\.tsv:3: the line is longer than 100 characters"):
            next(rows)

    def test_the_numbers_of_rows_that_pandas_writes(self, tmp_path: Path) -> None:
        parquet.write_table(pyarrow.table({"a": [1, 2], "__index_level_0__": [7, 8]}), tmp_path / "x.parquet")
        assert [row for _, row in read_rows(tmp_path / "x.parquet")] == [{"a": 1}, {"a": 2}]

    def test_only_line_ends_end_lines(self, tmp_path: Path) -> None:
        (tmp_path / "x.tsv").write_text("q\ta\nb\u2028c\x0b\x1c\x85d\te\n", encoding="utf-8")
        assert [row for _, row in read_rows(tmp_path / "x.tsv")] == [{"q": "b\u2028c\x0b\x1c\x85d", "a": "e"}]

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.jsonl")
        (tmp_path / "folder.jsonl").mkdir()
        (tmp_path / "real.jsonl").write_text("{}\n")
        (tmp_path / "link.jsonl").symlink_to("real.jsonl")
        with pytest.raises(DataError, match=r"x\.jsonl is not a regular file"):
            list(read_rows(tmp_path / "x.jsonl"))
        with pytest.raises(DataError, match=r"folder\.jsonl has no file that can be read"):
            list(read_rows(tmp_path / "folder.jsonl"))
        assert [row for _, row in read_rows(tmp_path / "link.jsonl")] == [{}]
        for name in ("a\0b", "x" * 5000, "~nobody-of-that-name/x.jsonl"):
            with pytest.raises(DataError, match="there is no data at"):
                list(read_rows(name))

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            (pyarrow.array([b"\xff"]).cast(pyarrow.binary()).view(pyarrow.string()), "utf-8"),
            (pyarrow.array([1], pyarrow.timestamp("s", "Nowhere/Town")), "cannot read .* after row 0"),
            (pyarrow.array([2**62], pyarrow.timestamp("ms")), "cannot read .* after row 0"),
        ],
    )
    def test_parquet_that_is_no_python(self, tmp_path: Path, values: Any, said: str) -> None:
        parquet.write_table(pyarrow.table({"a": values}), tmp_path / "x.parquet")
        with pytest.raises(DataError, match=said):
            list(read_rows(tmp_path / "x.parquet"))

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("x.jsonl", b'{"a": 1}\n[1]\n', r"x\.jsonl:2: a row is a JSON object, not list"),
            ("x.jsonl", b'{"a": 1}\n{"a"\n', r"x\.jsonl:2: not JSON"),
            ("x.json", b'[{"a": 1},\n {"a": ]', r"x\.json:2: not JSON"),
            ("x.json", b'[{"a": 1}, 3]', r"x\.json:2: a row is a JSON object, not int"),
            ("x.jsonl", b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}", r"x\.jsonl:2: JSON that cannot be read: .*digits"),
            ("x.json", b'[{"a": ' + b"9" * 5000 + b"}]", r"x\.json:1: JSON that cannot be read: .*digits"),
            ("x.json", b'[\n"\xe9"]', r"x\.json:2: not UTF-8 text"),
            ("x.json.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], r"x\.json\.gz is damaged after line 99"),
            ("x.parquet", b"PAR1 and nothing else", r"cannot read .*x\.parquet after row 0"),
            ("x.tsv", b"q\ta\n1\n", r"x\.tsv:2: 1 field, not 2 \(q, a\)"),
            ("x.tsv", b"q\tq\n1\t2\n", r"x\.tsv:1: two columns are called 'q'"),
            ("x.tsv", b"q\ta\n1\t2\n\xe9\t3\n", r"x\.tsv:3: not UTF-8 text"),
            ("x.csv", b'q,a\n"1,2\n', r"x\.csv:2: not CSV: unexpected end of data"),
            ("x.csv", b'q,a\n"1"2,3\n', r"x\.csv:2: not CSV: "),
            ("x.csv", "q,a\n1,2\n".encode("utf-16"), r"x\.csv is UTF-16 text: save it as UTF-8"),
            ("x.txt", b"", r"x\.txt has none of the endings that can be read: \.jsonl, "),
        ],
    )
    def test_damage_is_told_with_its_place(self, tmp_path: Path, name: str, content: bytes, said: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=said):
            list(read_rows(tmp_path / name))

    def test_rows_before_the_damage_are_given(self, tmp_path: Path) -> None:
        (tmp_path / "x.jsonl").write_text('{"a": 1}\nnothing\n')
        assert next(read_rows(tmp_path / "x.jsonl"))[1] == {"a": 1}

    @pytest.mark.parametrize("name", ["none.jsonl", "no/such.parquet", "./none", "a/b/c"])
    def test_nothing_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=r"there is no data at .*: no such file or directory, and no hub id"):
            list(read_rows(name))


CARD = """---
license: mit
configs:
- config_name: one
  data_files:
  - split: train
    path: one/train-*
  - split: test
    path: [one/test.parquet]
- config_name: two
  data_files: two/*.parquet
---
# A data set
"""
FILES = {
    "one/train-00000-of-00002.parquet": 0,
    "one/train-00001-of-00002.parquet": 1,
    "one/test.parquet": 2,
    "two/0.parquet": 3,
}


def lay_out(directory: Path, card: str = CARD, files: dict[str, int] | None = None) -> Path:
    """Make a data set in which each file has one row, its number."""
    for name, number in (FILES if files is None else files).items():
        write(directory / name, [{"a": number}])
    (directory / "README.md").write_text(card)
    (directory / "dataset_infos.json").write_text("{}")
    return directory


def numbers(*arguments: Any, **named: Any) -> list[int]:
    return [row["a"] for _, row in read_rows(*arguments, **named)]


class TestDirectories:
    def test_the_card_says_which_files(self, tmp_path: Path) -> None:
        lay_out(tmp_path)
        assert numbers(tmp_path, config="one") == [0, 1]
        assert numbers(tmp_path, config="one", split="test") == [2]
        assert numbers(tmp_path, config=("two", "one")) == [3, 0, 1]

    @pytest.mark.parametrize(
        ("named", "said"),
        [
            ({}, "has several configs; name one of one, two"),
            ({"config": "three"}, "has no config 'three'; it has one, two"),
            ({"config": "one", "split": "dev"}, "has no split 'dev' in its config 'one'; it has test, train"),
        ],
    )
    def test_what_the_card_does_not_have(self, tmp_path: Path, named: dict[str, str], said: str) -> None:
        with pytest.raises(DataError, match=said):
            numbers(lay_out(tmp_path), **named)

    @pytest.mark.parametrize("mark", ["  default: true\n", ""])
    def test_the_default_config(self, tmp_path: Path, mark: str) -> None:
        card = CARD.replace("config_name: two\n", f"config_name: {'two' if mark else 'default'}\n{mark}")
        assert numbers(lay_out(tmp_path, card)) == [3]

    @pytest.mark.parametrize("card", ["no front matter", "---\nlicense: mit\n---\n"])
    def test_names_say_it_where_the_card_does_not(self, tmp_path: Path, card: str) -> None:
        files = {"one/train-00000-of-00001.parquet": 0, "one/dev.jsonl": 1, "two/train/x.jsonl": 2, "two/train_sft.jsonl": 3}
        lay_out(tmp_path, card, files)
        assert numbers(tmp_path, config="one") == [0]
        assert numbers(tmp_path, config="one", split="validation") == numbers(tmp_path, config="one", split="dev") == [1]
        assert numbers(tmp_path) == [0, 2, 3]
        assert numbers(tmp_path, split="train_sft") == [3]
        with pytest.raises(DataError, match="has no config 'three': no folder with files is called so"):
            numbers(tmp_path, config="three")
        with pytest.raises(DataError, match="has no split 'test'; it has train, validation"):
            numbers(tmp_path, split="test")

    def test_files_that_tell_of_no_split_are_for_training(self, tmp_path: Path) -> None:
        lay_out(tmp_path, "", {"b.jsonl": 1, "a.jsonl.gz": 0})
        assert numbers(tmp_path) == [0, 1]
        with pytest.raises(DataError, match="has no split 'test'"):
            numbers(tmp_path, split="test")

    def test_shards_of_a_split_with_another_name(self, tmp_path: Path) -> None:
        lay_out(
            tmp_path, "", {"data/train_sft-00000-of-00001-ab12.parquet": 0, "data/test_sft-00000-of-00001-cd.parquet": 1}
        )
        assert numbers(tmp_path, split="train_sft") == [0]
        with pytest.raises(DataError, match="it has test_sft, train_sft"):
            numbers(tmp_path)

    def test_one_that_cannot_be_looked_into(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def closed(self: Path, pattern: str) -> list[Path]:
            raise PermissionError(13, "Permission denied", str(self / "inner"))

        monkeypatch.setattr(Path, "rglob", closed)
        with pytest.raises(DataError, match=r"cannot read .*inner: Permission denied"):
            numbers(tmp_path)

    def test_a_damaged_card_and_an_empty_directory(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"README\.md.* (cannot be read|is not valid YAML|is not a UTF-8 text file)"):
            numbers(lay_out(tmp_path / "a", "---\nconfigs: [\n---\n"))
        (tmp_path / "b").mkdir()
        with pytest.raises(DataError, match="b has no file that can be read"):
            numbers(tmp_path / "b")


class TestHub:
    """The hub is replaced at its two calls: which files there are, and where one of them is."""

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        lay_out(tmp_path)
        fetched: list[str] = []

        def dataset_info(self: Any, repo_id: str, *, revision: str | None = None) -> DatasetInfo:
            assert (repo_id, revision) == ("owner/name", "v1")
            info = DatasetInfo(id=repo_id, sha="c0ffee", private=False, tags=[])
            info.siblings = [RepoSibling(rfilename=name) for name in (*FILES, "README.md", ".gitattributes")]
            return info

        def download(repo_id: str, filename: str, *, repo_type: str, revision: str) -> str:
            assert (repo_id, repo_type, revision) == ("owner/name", "dataset", "c0ffee")
            fetched.append(filename)
            return str(tmp_path / filename)

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return fetched

    def test_files_of_one_commit_are_fetched_when_it_is_their_turn(self, hub: list[str]) -> None:
        rows = read_rows("owner/name", "v1", "one")
        assert next(rows) == ("owner/name/one/train-00000-of-00002.parquet:1", {"a": 0})
        assert hub == ["README.md", "one/train-00000-of-00002.parquet"]
        assert [row["a"] for _, row in rows] == [1]
        assert "one/test.parquet" not in hub

    def test_several_configs(self, hub: list[str]) -> None:
        assert numbers("owner/name", "v1", ("one", "two")) == [0, 1, 3]

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
            (errors.HTTPError("[Errno 111] nobody answers\nand so on"), r"does not give it: \[Errno 111\] nobody answers$"),
            (errors.LocalEntryNotFoundError("not in the cache"), "not in the cache"),
            (errors.HFValidationError("bad name"), "bad name"),
        ],
    )
    def test_why_it_does_not_answer(self, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
        with pytest.raises(DataError, match=said):
            numbers("owner/name")

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            (errors.GatedRepoError, "it is gated: accept its terms"),
            (errors.RepositoryNotFoundError, "no such data set, or it is private"),
            (errors.RevisionNotFoundError, "it has no such revision"),
        ],
    )
    def test_what_the_hub_says(self, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], said: str) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise kind.__new__(kind, "refused")  # to make one properly takes a response of the hub

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
        with pytest.raises(DataError, match=f"owner/name: .*{said}"):
            numbers("owner/name")
