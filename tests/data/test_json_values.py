"""JSON from files: every layout under every name, the place of what is wrong, and what readers disagree about."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.data import json_values, text_files
from psynth_jax.data.json_values import read_json_values
from psynth_jax.errors import DataError

ROWS: list[Any] = [{"a": number, "deep": [{"text": f"é{number}\u2028🙂"}], "b": "x" * number} for number in range(40)]
PRETTY = "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in ROWS)
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LAYOUTS = {
    "lines": LINES,
    "lines without an end": LINES.rstrip(),
    "empty lines": LINES.replace("\n", "\n \t\n\n"),
    "objects": PRETTY,
    "list": json.dumps(ROWS),
    "pretty list": json.dumps(ROWS, indent=1),
    "blank before": "\n\n  " + json.dumps(ROWS) + "\n\n",
}
BYTES = {
    "plain": lambda text: text.encode(),
    "mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "cr": lambda text: text.replace("\n", "\r").encode(),
    "gz": lambda text: gzip.compress(text.encode()),
    "gz with mark, crlf": lambda text: gzip.compress(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()),
}


@pytest.fixture(params=[1, 7, 1 << 20], ids="chunks of {}".format)
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a few bytes at a time: characters, numbers and escapes are cut everywhere."""
    monkeypatch.setattr(text_files, "CHUNK", request.param)


def read(path: Path, content: bytes) -> list[tuple[int, Any]]:
    path.write_bytes(content)
    return list(read_json_values(path))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", BYTES)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz"])
def test_every_layout_gives_the_same_values(tmp_path: Path, layout: str, form: str, name: str) -> None:
    assert [value for _, value in read(tmp_path / name, BYTES[form](LAYOUTS[layout]))] == ROWS


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("layout", ["lines", "pretty list", "objects"])
@pytest.mark.parametrize("form", ["mark", "crlf", "gz"])
def test_wherever_chunks_end(tmp_path: Path, layout: str, form: str) -> None:
    assert [value for _, value in read(tmp_path / "x", BYTES[form](LAYOUTS[layout]))] == ROWS


def test_numbers_are_lines_or_elements(tmp_path: Path) -> None:
    assert [number for number, _ in read(tmp_path / "x", b'{"a":\r\n1}\r\n\r\n{}\n')] == [1, 4]
    assert [number for number, _ in read(tmp_path / "x", b"[\n\n{},\n{}]")] == [1, 2]
    assert read(tmp_path / "x", b"12 345") == [(1, 12), (1, 345)]
    assert read(tmp_path / "x", b"") == read(tmp_path / "x", b" \n[ ]\n") == []


def test_files_that_were_joined_have_marks_inside(tmp_path: Path) -> None:
    assert [value for _, value in read(tmp_path / "x", 2 * b'\xef\xbb\xbf{"a": 1}\n')] == [{"a": 1}] * 2


def test_values_come_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" + '{"a": 1},' * 400_000 + "nothing")
    values = read_json_values(path)
    assert [next(values)[1] for _ in range(3)] == [{"a": 1}] * 3


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n{"a" 2}\n', r"x:2: not JSON: Expecting ':' delimiter at column 6"),
        (b'{"a": 1}\n{"a": "b\n{"a": 2}\n', r"x:2: not JSON: (Invalid control character|Unterminated string).*"),
        (b'{"a": 1}\n{"a"\n', r"x:2: not JSON: Expecting ':' delimiter at line 3 column 1"),
        (b'[{"a": 1},\n {"a": ]', r"x:2: not JSON: Expecting value at column 8"),
        (b'[{"a": 1}\n {"a": 2}]', r"x:2: not JSON: Expecting ',' delimiter at column 2"),
        (b'[{"a": 1},', r"x:1: not JSON: Expecting value at column 11"),
        (b'[{"a": 1}]\n\n{}', r"x:3: not JSON: Extra data at column 1"),
        (b'{"a": tru}', r"x:1: not JSON: Expecting value at column 7"),
        (b'{"a": "\\ux"}', r"x:1: not JSON: Invalid \\uXXXX escape.*"),
        (b"\0" * 5000, r"x:1: not JSON: Expecting value at column 1"),
        (b'{"a": 1}\n\0\0\0\0', r"x:2: not JSON: Expecting value at column 1"),
        (b'{"a": 1}\n{"a": "\xe9"}\n', r"x:2: not UTF-8 text"),
        (b'{"a": 1}\r\n{"a": "\xe9"}\r\n', r"x:2: not UTF-8 text"),
        (b'{"a": "\xf0\x9f', r"x:1: not UTF-8 text"),
        (b'{"a": 1}\n{"b": 1, "\xc3\xa9": 1, "\xc3\xa9": 2}', r"x:2: the key '\\xe9' is there twice in one object"),
        (b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}", r"x:2: JSON that cannot be read: .*digits.*"),
        (b'{"a": 1}\n' + b"[" * 200_000, r"x:2: JSON that cannot be read: .*recursion.*"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/{said}$"):
        read(tmp_path / "x", content)


def test_numbers_that_are_none_are_missing(tmp_path: Path) -> None:
    (found,) = read(tmp_path / "x", b'{"a": NaN, "b": [Infinity, -Infinity], "c": "NaN"}')
    assert found == (1, {"a": None, "b": [None, None], "c": "NaN"})


def test_one_value_has_a_longest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "LONGEST", 1000)
    monkeypatch.setattr(text_files, "CHUNK", 64)
    assert len(read(tmp_path / "x", b"[" + b'{"a": 1},' * 1000 + b"{}]")) == 1001
    with pytest.raises(DataError, match="x:1: a JSON value is longer than 1,000 characters"):
        read(tmp_path / "x", b'{"a": "' + b"y" * 5000 + b'"}')


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    for content in (LINES.encode(encoding), gzip.compress(LINES.encode(encoding))):
        with pytest.raises(DataError, match=r"x is UTF-(16|32|16 or UTF-32) text: save it as UTF-8"):
            read(tmp_path / "x", content)


class TestDamagedFiles:
    def test_rows_before_the_damage_are_given(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl.gz"
        path.write_bytes(gzip.compress(LINES.encode())[:-10])
        found = []
        with pytest.raises(DataError, match=r"x\.jsonl\.gz is damaged after line \d+"):
            found += [found.append(value) for _, value in read_json_values(path)]
        assert found == ROWS[: len(found)] and len(found) > 10

    def test_wrong_bytes_in_gzip(self, tmp_path: Path) -> None:
        content = bytearray(gzip.compress(LINES.encode() * 50))
        content[len(content) // 2] ^= 255
        with pytest.raises(DataError, match=r"x"):
            read(tmp_path / "x", bytes(content))

    @pytest.mark.parametrize("name", ["", "none", "no/such/file"])
    def test_directories_and_nothing(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match="cannot read"):
            list(read_json_values(tmp_path / name))

    def test_fifo_is_refused_and_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x")
        with pytest.raises(DataError, match="x is not a regular file"):
            list(read_json_values(tmp_path / "x"))

    def test_links_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("{}")
        (tmp_path / "link").symlink_to("x")
        assert list(read_json_values(tmp_path / "link")) == [(1, {})]

    def test_zero_byte_in_a_name(self) -> None:
        with pytest.raises(DataError, match="cannot read"):
            list(read_json_values("a\0b"))
