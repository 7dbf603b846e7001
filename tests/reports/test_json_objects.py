"""Objects from files: what is taken, and that what is wrong is one line naming file, line and key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.errors import DataError, InputError
from psynth_jax.reports.json_objects import Interval, JsonObject, finite, read_lines, read_object


class TestLines:
    def test_are_read_with_their_place(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"a": 1}\n\n{"a": 2}\n')
        found = [(line.where, line.values) for line in read_lines(path)]
        assert found == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": 2})]

    def test_a_last_line_without_an_end_is_left_out(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"a": 1}\n{"a": 2}')
        assert [line.values for line in read_lines(path)] == [{"a": 1}]
        assert path.read_text() == '{"a": 1}\n{"a": 2}'  # a reader mends nothing

    @pytest.mark.parametrize(
        "line",
        [
            b"{",
            b"[1]",
            b"3",
            b"\0\0",
            b'\xff{"a": 1}',
            b'{"a": ' + b"9" * 5000 + b"}",
            b"[" * 100_000,
        ],
    )
    def test_a_damaged_one_is_named(self, tmp_path: Path, line: bytes) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"a": 1}\n' + line + b"\n")
        with pytest.raises(DataError) as error:
            list(read_lines(path))
        assert str(error.value).startswith(f"{path}:2: ")
        assert "\n" not in str(error.value) and len(str(error.value)) < 400

    def test_what_is_no_regular_file_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.jsonl")
        with pytest.raises(InputError, match="not a regular file"):
            list(read_lines(tmp_path / "a.jsonl"))
        (tmp_path / "b.jsonl").mkdir()
        with pytest.raises(InputError, match=r"cannot read .*b\.jsonl"):
            list(read_lines(tmp_path / "b.jsonl"))


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_a_file_without_an_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json"):
        read_object(tmp_path / "a.json")


class TestValues:
    def test_are_taken(self) -> None:
        values: dict[str, Any] = {"t": "x", "n": 3, "s": -1.5, "share": 1, "no": None}
        line = JsonObject(values | {"i": {"mean": 0.5, "low": -0.25, "high": 1}}, "f:7")
        assert (line.text("t"), line.text("no", ""), line.number("n")) == ("x", "", 3.0)
        assert (line.number("no"), line.count("no"), line.count("n")) == (None, 0, 3)
        assert (line.signed("s"), line.share("share")) == (-1.5, 1.0)
        assert line.interval("i", "mean") == Interval(0.5, -0.25, 1.0)
        assert line.object("no") is None and line.objects("no") == []

    @pytest.mark.parametrize(
        ("method", "value", "right"),
        [
            ("text", 3, "a text"),
            ("text", None, "a text"),
            ("number", -1, "a number of at least 0"),
            ("number", True, "a number of at least 0"),
            ("number", 10**400, "a number of at least 0"),
            ("number", float("nan"), "a number of at least 0"),
            ("signed", "3", "a number"),
            ("share", 1.5, "a number from 0 to 1"),
            ("share", None, "a number from 0 to 1"),
            ("object", [], "an object"),
            ("objects", {}, "a list of objects"),
        ],
    )
    def test_of_a_wrong_kind(self, method: str, value: Any, right: str) -> None:
        line = JsonObject({"k": value}, "f:7")
        with pytest.raises(DataError) as error:
            getattr(line, method)("k")
        assert str(error.value).startswith("f:7: its k is ")
        assert str(error.value).endswith(f"; it must be {right}")

    def test_an_interval_without_an_end(self) -> None:
        line = JsonObject({"i": {"mean": 0.5, "low": 0.4}}, "f:7")
        with pytest.raises(DataError, match="f:7: i: its high is None; it must be a number"):
            line.interval("i", "mean")


def test_finite() -> None:
    assert finite(2) == 2.0
    assert [finite(value) for value in (True, "2", None, float("inf"), 10**400)] == [None] * 5


@pytest.mark.parametrize(
    ("interval", "crosses"),
    [
        (Interval(0.1, 0.01, 0.2), False),
        (Interval(-0.1, -0.2, -0.01), False),
        (Interval(0.1, -0.1, 0.3), True),
        (Interval(0.1, 0.0, 0.2), True),
        (Interval(0.1), True),
    ],
)
def test_crossing_zero(interval: Interval, crosses: bool) -> None:
    assert interval.crosses_zero is crosses
