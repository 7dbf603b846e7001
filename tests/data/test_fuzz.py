"""Damaged files of every kind: what comes out is data or one line that names the file, and never anything else.

Each kind is damaged `TRIES` times from a seed: bytes changed, taken out, put in, doubled, the end cut off.
"""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from psynth_jax.data.record import read_records
from psynth_jax.data.shards import open_shards
from psynth_jax.data.sources import SOURCES, convert_rows, read_rows
from psynth_jax.errors import UserError
from psynth_jax.evaluation.rows import RowFile
from psynth_jax.evaluation.summary import summarise
from psynth_jax.evaluation.tasks import QATask
from tests.data.sources.test_sources import GOOD, ODD, places, with_odd
from tests.data.test_shards import EXAMPLES, plain, write

TRIES = 200
PIECES = (
    b"\xff",
    b"\0",
    b"\xed\xa0\x80",
    b"\\ud83d",
    b'"',
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"NaN",
    b"1e999",
    b"9" * 5000,
)


def damaged(content: bytes, random: Random) -> bytes:
    """Change a few places of a file."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(changed) + 1)
        length = random.choice((1, 1, 4, 40))
        kind = random.randrange(6)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            del changed[place : place + length]
        elif kind == 2:
            changed[place:place] = random.choice(PIECES)
        elif kind == 3:
            changed[place : place + length] = random.randbytes(length)
        elif kind == 4:
            changed[place:place] = changed[place : place + 8 * length]
        elif kind == 5 and random.random() < 0.3:
            del changed[place:]
    return bytes(changed)


def survives(use: Callable[[], Any], file: Path) -> bool:
    """Use a damaged file; tell whether it was taken.  An error is one of the user, on one line, and names the file."""
    try:
        use()
    except UserError as error:
        said = str(error)
        assert said and "\n" not in said and str(file.parent) in said, said
        assert len(said) < 1000, said
        said.encode()
        return False
    return True


def rows_of(source: str) -> list[dict[str, Any]]:
    return [GOOD[source] | {"_id": f"q{number}", "id": f"é{number}"} for number in range(8)]


def table(separator: str) -> str:
    context = "{'title': ['Ann']; 'sentences': [['Ann wrote it.']]}".replace(";", "," if separator != "," else ";")
    lines = [["question", "answer", "context"], *([f"Who is {number}?", "Ann", context] for number in range(8))]
    return "".join(separator.join(fields) + "\n" for fields in lines)


RECORDS = "".join(json.dumps(GOOD["records"] | {"id": f"é{number}", "answers": ["a"]}) + "\n" for number in range(8))
HOTPOT = rows_of("hotpotqa")
TEXTS: dict[str, bytes] = {
    "x.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in HOTPOT).encode(),
    "x.json": json.dumps(HOTPOT, indent=1).encode(),
    "one.json": json.dumps(HOTPOT[0], indent=1).encode(),
    "x.jsonl.gz": gzip.compress(json.dumps(HOTPOT).encode(), mtime=0),
    "x.tsv": table("\t").encode(),
    "x.csv": ("question,answer,context\n" + '"Who, then?",Ann,"[[""Ann"", [""Ann\nwrote.""]]]"\n' * 8).encode(),
    "x.csv.gz": gzip.compress(table(",").encode(), mtime=0),
}


WHOLE = [plain(example) for example in EXAMPLES]
SETTINGS: dict[str, Any] = {"format": 1, "data": "d" * 64, "mesh": {}, "adapter": None}
ROW: dict[str, Any] = {"id": "q0", "task": "cities", "method": "text", "prediction": "Rome", "answers": ["Rome"], "em": 1.0}
ROW |= {"f1": 0.5, "written": "Rome", "batch": 2, "ttft_s": 1.0, "prompt_tokens": 10, "cached_tokens": 20}
ROW |= {"generated_tokens": 2, "finish_reason": "stop"}
ROWS = [ROW | {"id": f"q{number}"} for number in range(6)]


@pytest.mark.parametrize("name", TEXTS)
def test_text_files(tmp_path: Path, name: str) -> None:
    file, random = tmp_path / name, Random(name)
    taken = []
    for _ in range(TRIES):
        file.write_bytes(damaged(TEXTS[name], random))
        taken.append(survives(lambda: list(convert_rows(SOURCES["hotpotqa"], read_rows(file))), file))
    assert True in taken and False in taken


@pytest.mark.parametrize("compression", ["snappy", "none", "gzip", "zstd"])
def test_parquet(tmp_path: Path, compression: str) -> None:
    file, random = tmp_path / "x.parquet", Random(compression)
    rows = [{**row, "context": json.dumps(row["context"]), "n": 1.5, "t": None} for row in HOTPOT]
    rows = [
        {key: row[key] for key in ("question", "answer", "context", "answer_aliases", "n") if key in row} for row in rows
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, compression=compression, row_group_size=3)
    whole = file.read_bytes()
    taken = []
    for _ in range(TRIES):
        file.write_bytes(damaged(whole, random))
        taken.append(survives(lambda: list(convert_rows(SOURCES["hotpotqa"], read_rows(file))), file))
    assert False in taken


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.jsonl.gz"])
def test_records(tmp_path: Path, name: str) -> None:
    file, random = tmp_path / name, Random(name)
    whole = RECORDS.encode()
    if name == "r.json":
        whole = json.dumps([json.loads(line) for line in RECORDS.splitlines()]).encode()
    whole = gzip.compress(whole, mtime=0) if name.endswith(".gz") else whole
    taken = []
    for _ in range(TRIES):
        file.write_bytes(damaged(whole, random))
        taken.append(
            survives(
                lambda: [json.dumps(record.to_json(), ensure_ascii=False).encode() for record in read_records(file)], file
            )
        )
        survives(lambda: QATask(file).questions(), file)
    assert False in taken


class TestShards:
    """A damaged directory gives its examples, or says which of its files is damaged: never other examples."""

    def take(self, directory: Path) -> None:
        (shard,) = open_shards(directory)
        for number in range(len(shard)):
            name, _, *tokens = plain(shard[number])
            expected, _, *others = WHOLE[number]
            assert (name, tokens) == (expected, others)

    @pytest.mark.parametrize("name", ["examples.array_record", "lengths.npy", "task.json"])
    def test_bytes(self, tmp_path: Path, name: str) -> None:
        file, random = write(tmp_path) / name, Random(name)
        whole = file.read_bytes()
        used = len(whole.rstrip(b"\0"))  # the file of examples is filled up to whole blocks
        taken = []
        for _ in range(TRIES):
            file.write_bytes(damaged(whole[:used], random) + whole[used:])
            taken.append(survives(lambda: self.take(file.parent), file))
        assert False in taken

    def test_lengths_of_older_directories_have_no_hash(self, tmp_path: Path) -> None:
        file, random = write(tmp_path) / "lengths.npy", Random(3)
        info = json.loads(file.with_name("task.json").read_text())
        del info["lengths_sha256"]
        file.with_name("task.json").write_text(json.dumps(info))
        whole = file.read_bytes()
        taken = []
        for _ in range(TRIES):
            file.write_bytes(damaged(whole, random))
            taken.append(survives(lambda: self.take(file.parent), file))
        assert False in taken

    def test_description_of_wrong_types(self, tmp_path: Path) -> None:
        file = write(tmp_path) / "task.json"
        good = json.loads(file.read_text())
        taken = []
        for path in places(good):
            for value in (*ODD, -1, 10**30, "x" * 5000):
                file.write_text(json.dumps(with_odd(good, path, value)))
                taken.append(survives(lambda: self.take(file.parent), file))
        assert False in taken


class TestEvaluation:
    def take(self, folder: Path) -> None:
        file = RowFile(folder, SETTINGS, ["em", "f1"])
        if file.rows:
            summarise({"text": list(file.rows.values())}, ["em", "f1"], seed=0)
        file.write_summary({})

    def lay_out(self, folder: Path) -> None:
        (folder / "settings.json").write_text(json.dumps(SETTINGS))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    @pytest.mark.parametrize("name", ["rows.jsonl", "settings.json"])
    def test_bytes(self, tmp_path: Path, name: str) -> None:
        random = Random(name)
        self.lay_out(tmp_path)
        whole = (tmp_path / name).read_bytes()
        taken = []
        for _ in range(TRIES):
            self.lay_out(tmp_path)
            (tmp_path / name).write_bytes(damaged(whole, random))
            taken.append(survives(lambda: self.take(tmp_path), tmp_path / name))
        assert True in taken and False in taken

    @pytest.mark.parametrize("name", ["rows.jsonl", "settings.json"])
    def test_wrong_types(self, tmp_path: Path, name: str) -> None:
        good: dict[str, Any] = ROW if name == "rows.jsonl" else SETTINGS
        taken = []
        for path in places(good):
            for value in (*ODD, -1, 10**30, "x" * 5000):
                self.lay_out(tmp_path)
                (tmp_path / name).write_text(json.dumps(with_odd(copy.deepcopy(good), path, value)) + "\n")
                taken.append(survives(lambda: self.take(tmp_path), tmp_path / name))
        assert False in taken
