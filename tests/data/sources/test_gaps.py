"""Gaps: whatever stands for a missing value, in whatever place of whatever source, is as if null stood there."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from psynth_jax.data.prepare import PrepareOptions, prepare_records
from psynth_jax.data.record import Record, read_records
from psynth_jax.data.sources import SOURCES, convert_rows, read_rows
from psynth_jax.data.sources.fields import UnfitError, as_json, identifier, is_true, items, kept, literal, text
from psynth_jax.errors import DataError
from tests.data.sources.converting import convert, reason, record
from tests.data.sources.test_sources import GOOD, places, with_odd
from tests.data.test_missing import MISSING


def result(name: str, row: dict[str, Any]) -> list[Any]:
    """Convert a row, an error included, to what can be compared."""
    try:
        items = convert(name, row)
    except DataError as error:
        return [str(error)]
    return [item.to_json() if isinstance(item, Record) else item for item in items]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("missing", MISSING)
def test_is_as_null_everywhere(name: str, missing: str) -> None:
    for path in places(GOOD[name]):
        gap = result(name, with_odd(GOOD[name], path, MISSING[missing]))
        assert gap == result(name, with_odd(GOOD[name], path, None)), path


@pytest.mark.parametrize("name", ["toucan_single", "toucan_multi", "hotpotqa"])
def test_is_as_null_in_json_inside_of_a_text(name: str) -> None:
    key = "context" if name == "hotpotqa" else "messages"
    for path in places(GOOD[name][key]):
        made = []
        for value in (float("nan"), None):
            spelled = json.dumps(with_odd({"x": GOOD[name][key]}, ("x", *path), value)["x"])
            made.append(result(name, GOOD[name] | {key: spelled}))
        assert made[0] == made[1], path


class TestParquet:
    def rows(self, tmp_path: Path, **columns: Any) -> Path:
        count = len(next(iter(columns.values())))
        texts = {"question": ["Who?"] * count, "context": [json.dumps([["Ann", ["Ann wrote it."]]])] * count}
        parquet.write_table(pyarrow.table({**texts, **columns}), tmp_path / "x.parquet")
        return tmp_path / "x.parquet"

    def test_a_column_of_floats_with_gaps(self, tmp_path: Path) -> None:
        answers = pyarrow.array([1998.0, None, float("nan"), 2.5, float("inf")], from_pandas=False)
        aliases = pyarrow.array([[5.0, None], [], [], [float("nan")], []])
        file = self.rows(tmp_path, answer=answers, answer_aliases=aliases, _id=[1.0, 2.0, 3.0, None, 5.0])
        tally = prepare_records(PrepareOptions(source="hotpotqa", input=str(file)), tmp_path / "out.jsonl")
        assert tally.dropped == {"no answer": 3}
        first, second = read_records(tmp_path / "out.jsonl")
        assert (first.id, first.target, first.answers) == ("1", "1998", ("1998", "5"))
        assert (second.target, second.answers) == ("2.5", ("2.5",)) and len(second.id) == 12

    def test_records_with_gaps(self, tmp_path: Path) -> None:
        branch = pyarrow.struct([("text", pyarrow.string()), ("prefix", pyarrow.string())])
        table = {
            "id": ["a", "b"],
            "task": ["qa", "qa"],
            "query": ["q", "q"],
            "target": ["t", "t"],
            "branches": pyarrow.array(
                [[{"text": "x", "prefix": None}], [{"text": "y", "prefix": "p"}]], pyarrow.list_(branch)
            ),
            "answers": pyarrow.array([None, ["t", None]], pyarrow.list_(pyarrow.string())),
            "meta": [{"year": float("nan")}, {"year": 1998.0}],
        }
        parquet.write_table(pyarrow.table(table), tmp_path / "r.parquet")
        first, second = convert_rows(SOURCES["records"], read_rows(tmp_path / "r.parquet"))
        assert isinstance(first, Record) and isinstance(second, Record)
        assert (first.answers, first.branches[0].prefix, dict(first.meta)) == ((), "", {"year": None})
        assert (second.answers, second.branches[0].prefix) == (("t",), "p")


class TestJsonLines:
    def test_nan_is_no_answer(self, tmp_path: Path) -> None:
        good = {"question": "Who?", "context": [["Ann", ["Ann wrote it."]]]}
        rows = "".join(json.dumps(good | {"answer": value}) + "\n" for value in (float("nan"), float("-inf"), None))
        file = tmp_path / "x.jsonl"
        file.write_text(rows + json.dumps(good | {"answer": "Ann", "aliases": [float("nan"), "A."], "level": float("nan")}))
        (item,) = (item for item in convert_rows(SOURCES["hotpotqa"], read_rows(file)) if isinstance(item, Record))
        assert item.answers == ("Ann", "A.") and dict(item.meta) == {"supporting": []}

    @pytest.mark.parametrize("key", ["id", "task", "query", "target", "branches"])
    def test_a_record_that_lacks_something(self, tmp_path: Path, key: str) -> None:
        value = GOOD["records"] | {key: float("nan")}
        (tmp_path / "r.jsonl").write_text(json.dumps(value))
        with pytest.raises(DataError, match=rf"r\.jsonl:1: record .*: missing {key}"):
            list(read_records(tmp_path / "r.jsonl"))


def test_flags_with_gaps() -> None:
    talk = GOOD["wildchat"]
    for value in (float("nan"), None, 0.0, "false", ""):
        row = talk | {"redacted": value, "toxic": value}
        assert record("wildchat", row, drop_redacted=True, drop_toxic=True).id
    for value in (1.0, "true", True):
        assert reason("wildchat", talk | {"redacted": value}, drop_redacted=True) == "something is redacted"
    assert reason("wildchat", talk | {"toxic": "perhaps"}, drop_toxic=True) == "toxic is neither true nor false"


class TestFields:
    def test_half_a_surrogate_pair_is_told(self) -> None:
        with pytest.raises(UnfitError, match="answer is not Unicode text"):
            text("a\ud800", "answer")
        assert identifier("a\ud800") == ""

    def test_numbers(self) -> None:
        assert [text(value, "x") for value in (5, 5.0, 2.5, 1e300)] == ["5", "5", "2.5", "1e+300"]
        with pytest.raises(UnfitError, match="x is no text"):
            text(10**5000, "x")
        assert (identifier(7.0), identifier(True), identifier([1])) == ("7", "", "")
        assert kept({"a": 3.0, "b": 2.5, "c": float("nan"), "d": None, "e": False}, *"abcde") == {
            "a": 3,
            "b": 2.5,
            "e": False,
        }

    def test_json_of_calls_has_null_for_what_is_missing(self) -> None:
        assert as_json({"a": float("nan"), "b": [float("inf")]}) == '{"a": null, "b": [null]}'

    @pytest.mark.parametrize(
        "spelled",
        [
            "[" * 5000,
            "[" + "-" * 100_000 + "1]",
            "[0x" + "f" * 9000 + "]",
            "[1e999, nan]",
            "['\\ud800']",
            "{" * 300 + "}" * 300,
            "[1]\0",
        ],
    )
    def test_literals_that_no_reader_likes(self, spelled: str) -> None:
        """Each reader takes it or raises an UnfitError; any other exception fails the test."""
        for read in (literal, lambda value: [text(item, "x") for item in items(value, "x")], as_json):
            with contextlib.suppress(UnfitError):
                read(spelled)

    def test_truth(self) -> None:
        assert [is_true(value, "x") for value in (None, float("nan"), "No", 0, 1, " TRUE ")] == [False] * 4 + [True] * 2
        with pytest.raises(UnfitError, match="x is neither true nor false"):
            is_true([], "x")
