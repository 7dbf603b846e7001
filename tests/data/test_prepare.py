"""From a source to examples or records: what is written, what is counted, what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.data.example import lengths_of, tokenise
from psynth_jax.data.prepare import PrepareOptions, Tally, check, known_sources, prepare_examples, prepare_records
from psynth_jax.data.record import read_records
from psynth_jax.data.shards import Shard
from psynth_jax.data.sources.multihop import MultihopOptions
from psynth_jax.data.synthetic import KINDS, synthetic_records
from psynth_jax.errors import ConfigError, DataError, InputError
from psynth_jax.tokenizer import Tokenizer
from tests.tiny import BYTES_VOCABULARY, byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


def row(number: int, **changed: Any) -> dict[str, Any]:
    context = [["Ann", ["Ann wrote it.", f" In {number}."]], ["Bob", ["Bob read it."]]]
    return {"_id": f"q{number}", "question": "Who?", "answer": "Ann", "context": context} | changed


ROWS = [row(1), row(2, answer=""), row(3), row(4, context=[]), row(5, answer=""), row(3)]


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in ROWS))
    return file


class TestExamples:
    def test_of_a_file(self, rows_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        seen: list[int] = []
        tally = prepare_examples(
            PrepareOptions(source="hotpotqa", input=str(rows_file)),
            tmp_path / "data",
            tokenizer,
            "tiny",
            lambda now: seen.append(now.rows),
        )
        dropped = {"no answer": 2, "no paragraph with text": 1, "the same record was there before": 1}
        assert (tally.rows, tally.tasks, tally.dropped) == (6, {"hotpotqa": 2}, dropped)
        assert seen == [1, 1, 2, 3, 3, 4, 5, 6]  # after records, and after rows
        shard = Shard(tmp_path / "data" / "hotpotqa", tokenizer.fingerprint)
        assert [shard[0].id, shard[1].id] == ["q1", "q3"]
        assert tokenizer.decode(shard[1].branches[0].kept.tolist()) == "Ann\nAnn wrote it. In 3."
        assert shard[0].target.tolist() == [*tokenizer.encode("Ann"), tokenizer.end_id]
        assert shard.info["dropped"] == dropped
        assert (shard.info["end_id"], shard.info["vocabulary"]) == (BYTES_VOCABULARY - 1, BYTES_VOCABULARY)
        assert shard.info["source"] == {
            "name": "hotpotqa",
            "options": MultihopOptions().model_dump(),
            "input": str(rows_file),
            "revision": None,
            "config": None,
            "split": "train",
            "limit": None,
            "rows": 6,
            "sha256": {"rows.jsonl": hashlib.sha256(rows_file.read_bytes()).hexdigest()},
        }

    def test_of_a_directory(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        for name, number in (("train/a.jsonl", 1), ("train/b.jsonl", 2), ("dev/a.jsonl", 3)):
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_text(json.dumps(row(number)))
        asked = PrepareOptions(source="hotpotqa", input=str(tmp_path / "in"), split="validation")
        prepare_examples(asked, tmp_path / "dev", tokenizer, "tiny")
        assert Shard(tmp_path / "dev" / "hotpotqa")[0].id == "q3"
        asked = PrepareOptions(source="hotpotqa", input=str(tmp_path / "in"), options=("max_contexts=1",))
        prepare_examples(asked, tmp_path / "out", tokenizer, "tiny")
        shard = Shard(tmp_path / "out" / "hotpotqa")
        assert [len(shard[index].branches) for index in range(2)] == [1, 1]
        assert set(shard.info["source"]["sha256"]) == {"train/a.jsonl", "train/b.jsonl"}
        assert shard.info["source"]["options"]["max_contexts"] == 1

    def test_synthetic(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        tally = prepare_examples(
            PrepareOptions(source="synthetic", limit=13, seed=4, split="test"), tmp_path / "data", tokenizer, "tiny"
        )
        records = list(synthetic_records(count=13, seed=4, split="test"))
        assert tally.tasks == {f"synthetic_{kind}": 3 if kind == KINDS[0] else 2 for kind in KINDS}
        shard = Shard(tmp_path / "data" / "synthetic_join")
        expected = [tokenise(record, tokenizer, BYTES_VOCABULARY - 1) for record in records[1::6]]
        assert [shard[index].id for index in range(2)] == [each.id for each in expected]
        assert shard.lengths.tolist() == [list(lengths_of(each)) for each in expected]
        assert shard.info["source"]["options"] == {"kinds": list(KINDS), "split": "test", "seed": 4}

    def test_records_of_several_tasks(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        file = tmp_path / "records.jsonl.gz"
        prepare_records(PrepareOptions(source="synthetic", limit=8, options=("kinds=join,count",)), file)
        prepare_examples(PrepareOptions(source="records", input=str(file), limit=5), tmp_path / "a", tokenizer, "tiny")
        prepare_examples(
            PrepareOptions(source="synthetic", limit=5, options=("kinds=join,count",)), tmp_path / "b", tokenizer, "tiny"
        )
        for task in ("synthetic_join", "synthetic_count"):
            through, direct = Shard(tmp_path / "a" / task), Shard(tmp_path / "b" / task)
            assert through.lengths.tolist() == direct.lengths.tolist()
            assert through[1].prompt.tolist() == direct[1].prompt.tolist()

    def test_records_without_tokens_are_counted(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        """A normaliser may drop what a text consists of: it is no text to the model."""

        class Deaf(Tokenizer):
            def encode(self, text: str) -> list[int]:
                return [] if text == "???" else super().encode(text)

        file = tmp_path / "records.jsonl"
        value = {"id": "r", "task": "qa", "query": "Who?", "target": "Ann", "branches": [{"text": "Ann wrote it."}]}
        file.write_text("".join(json.dumps(value | {"target": target}) + "\n" for target in ("Ann", "???")))
        tally = prepare_examples(
            PrepareOptions(source="records", input=str(file)), tmp_path / "data", Deaf(tokenizer.backend), "tiny"
        )
        assert (tally.tasks, tally.dropped) == ({"qa": 1}, {"no token in the target or in a branch": 1})
        assert Shard(tmp_path / "data" / "qa").info["dropped"] == dict(tally.dropped)

    def test_limit_reads_no_further(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps(row(1)) + "\n" + json.dumps(row(2)) + "\nnot JSON\n")
        tally = prepare_examples(PrepareOptions(source="hotpotqa", input=str(file), limit=2), tmp_path, tokenizer, "tiny")
        assert (tally.rows, tally.tasks) == (2, {"hotpotqa": 2})


class TestRecords:
    def test_are_written(self, rows_file: Path, tmp_path: Path) -> None:
        file = tmp_path / "out" / "records.jsonl"
        tally = prepare_records(PrepareOptions(source="hotpotqa", input=str(rows_file)), file)
        assert [record.id for record in read_records(file)] == ["q1", "q3"]
        assert (tally.rows, tally.tasks["hotpotqa"], tally.dropped["no answer"]) == (6, 2, 2)

    def test_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        full = Path("/dev/full")
        if not full.exists():
            pytest.skip("there is no /dev/full, the disk that is always full")
        monkeypatch.setattr(Path, "with_name", lambda self, name: full)
        monkeypatch.setattr(Path, "unlink", lambda self, missing_ok: None)
        with pytest.raises(DataError, match=r"cannot write .*r\.jsonl: the disk is full"):
            prepare_records(PrepareOptions(source="synthetic", limit=50), tmp_path / "new" / "r.jsonl")
        assert not (tmp_path / "new").exists()


def lost(asked: PrepareOptions, tmp_path: Path) -> None:
    """Prepare both ways; either must leave nothing."""
    outcomes = []
    ways: list[Callable[[], Tally]] = [
        lambda: prepare_records(asked, tmp_path / "out" / "records.jsonl"),
        lambda: prepare_examples(asked, tmp_path / "out" / "data", byte_tokenizer(), "tiny"),
    ]
    for way in ways:
        try:
            way()
        except (DataError, InputError, ConfigError) as error:
            outcomes.append((type(error), str(error)))
    assert len(outcomes) == 2 and outcomes[0] == outcomes[1]
    assert not list(tmp_path.glob("out/**/*"))
    kind, message = outcomes[0]
    raise kind(message)


class TestRefused:
    def test_damaged_line(self, rows_file: Path, tmp_path: Path) -> None:
        with rows_file.open("a") as file:
            file.write('{"_id": \n')
        with pytest.raises(DataError, match=r"rows\.jsonl:7: not JSON"):
            lost(PrepareOptions(source="hotpotqa", input=str(rows_file)), tmp_path)

    def test_wrong_record(self, tmp_path: Path) -> None:
        file = tmp_path / "records.jsonl"
        value = {"id": "r", "task": "qa", "query": "Who?", "target": " ", "branches": [{"text": "Ann wrote it."}]}
        file.write_text(json.dumps(value))
        with pytest.raises(DataError, match=r"records\.jsonl:1: record 'r': its target is empty"):
            lost(PrepareOptions(source="records", input=str(file)), tmp_path)

    def test_nothing_but_dropped_rows(self, tmp_path: Path) -> None:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row(number, answer="")) + "\n" for number in range(3)))
        file.write_text("")
        with pytest.raises(DataError, match=r"rows\.jsonl has no rows"):
            lost(PrepareOptions(source="hotpotqa", input=str(file)), tmp_path)
        file.write_text(json.dumps(row(1, answer="")))
        with pytest.raises(DataError, match=r"the only row of .*rows\.jsonl gives no record for hotpotqa \(no answer: 1\)"):
            lost(PrepareOptions(source="hotpotqa", input=str(file)), tmp_path)
        file.write_text("".join(json.dumps(row(number, answer="")) + "\n" for number in range(3)))
        said = r"none of the 3 rows of .*rows\.jsonl gives a record for hotpotqa \(no answer: 3\)"
        with pytest.raises(DataError, match=said):
            lost(PrepareOptions(source="hotpotqa", input=str(file)), tmp_path)

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ({"source": "wiki"}, "no source 'wiki'; choose from 2wikimultihopqa, attempts, browsecomp"),
            ({"source": "records"}, "records has no data set of its own"),
            ({"source": "records", "input": "none.jsonl"}, "no data at none.jsonl"),
            ({"source": "synthetic"}, "say with --limit"),
            ({"source": "synthetic", "limit": 3, "input": "a.jsonl"}, "leave out the input"),
            ({"source": "synthetic", "limit": 3, "seed": 1, "options": ("seed=2",)}, "'seed=1' is given twice"),
            ({"source": "synthetic", "limit": 3, "split": "dev"}, "split: Input should be 'train'"),
            ({"source": "hotpotqa", "input": "a.jsonl", "seed": 1}, "no option of hotpotqa"),
            ({"source": "hotpotqa", "input": "a.jsonl", "options": ("styl=short",)}, "with a key of: style, max_contexts"),
        ],
    )
    def test_what_cannot_be(self, asked: dict[str, Any], said: str, tmp_path: Path) -> None:
        with pytest.raises((DataError, InputError, ConfigError), match=said):
            lost(PrepareOptions.parse(asked), tmp_path)

    def test_tokenizer_without_end(self, tmp_path: Path) -> None:
        endless = byte_tokenizer()
        endless.backend.eos_token = None
        with pytest.raises(InputError, match="the tokenizer of tiny has no end token"):
            prepare_examples(PrepareOptions(source="synthetic", limit=3), tmp_path, endless, "tiny")

    def test_tokenizer_without_template(self, tmp_path: Path) -> None:
        speechless = byte_tokenizer()
        speechless.backend.chat_template = None
        with pytest.raises(InputError, match="no chat template"):
            prepare_examples(PrepareOptions(source="synthetic", limit=3), tmp_path / "data", speechless, "tiny")
        assert not (tmp_path / "data").exists()


class TestTokensWithoutAnEmbedding:
    """The byte tokenizer has 258 tokens: 256 bytes, and the two marks of a chat, the last of which ends a turn."""

    def prepare(self, tmp_path: Path, tokenizer: Tokenizer, vocabulary_size: int, text: str = "Ann wrote it.") -> Tally:
        value = {"id": "r1", "task": "qa", "query": "Who?", "target": "Ann", "branches": [{"text": "b", "prefix": text}]}
        (tmp_path / "r.jsonl").write_text(json.dumps(value))
        asked = PrepareOptions(source="records", input=str(tmp_path / "r.jsonl"))
        return prepare_examples(asked, tmp_path / "data", tokenizer, "tiny", None, vocabulary_size)

    def test_all_have_one(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        assert self.prepare(tmp_path, tokenizer, BYTES_VOCABULARY).tasks == {"qa": 1}

    def test_the_end_token_has_none(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        with pytest.raises(InputError, match=r"the end token of tiny \(257\) has no embedding: the model has 257, from 0"):
            self.prepare(tmp_path, tokenizer, 257)
        assert not (tmp_path / "data").exists()

    def test_a_token_of_a_text_has_none(self, tmp_path: Path) -> None:
        larger = byte_tokenizer()
        larger.backend.add_tokens(["<new>"])
        assert self.prepare(tmp_path, larger, BYTES_VOCABULARY).tasks == {"qa": 1}  # no text has it
        said = r"task qa, example 'r1': its token 258 \('<new>'\) has no embedding in tiny, which has 258, from 0"
        with pytest.raises(DataError, match=said):
            self.prepare(tmp_path, larger, BYTES_VOCABULARY, "a <new> b")
        assert self.prepare(tmp_path, larger, BYTES_VOCABULARY + 1, "a <new> b").tasks == {"qa": 1}


class TestInto:
    ASKED = PrepareOptions(source="synthetic", limit=2, options=("kinds=join",))

    def test_a_directory_of_one_task_is_not_nested(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        for _ in range(2):
            prepare_examples(self.ASKED, tmp_path / "data", tokenizer, "tiny")
        said = r"synthetic_join holds the examples of a task: .* so give .*/data, or another directory"
        with pytest.raises(InputError, match=said):
            prepare_examples(self.ASKED, tmp_path / "data" / "synthetic_join", tokenizer, "tiny")
        assert len(Shard(tmp_path / "data" / "synthetic_join")) == 2

    def test_what_is_no_directory(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        os.mkfifo(tmp_path / "fifo")
        for name, said in (("file", "is a file: --into names a directory"), ("fifo", "is not a regular file")):
            with pytest.raises(InputError, match=said):
                prepare_examples(self.ASKED, tmp_path / name, tokenizer, "tiny")

    @pytest.mark.parametrize("name", ["r.parquet", "r.tsv", "r.csv.gz"])
    def test_records_are_not_written_under_the_name_of_another_format(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputError, match=r"records are JSON lines, and .* name it \.jsonl or \.jsonl\.gz"):
            prepare_records(self.ASKED, tmp_path / name)


class TestWhatIsCheckedFirst:
    def test_nothing_is_read(self, rows_file: Path) -> None:
        check(PrepareOptions(source="hotpotqa", input=str(rows_file)))
        with pytest.raises(DataError, match="no data at none"):
            check(PrepareOptions(source="hotpotqa", input="none.jsonl"))

    @pytest.mark.parametrize("name", ["revision", "config", "split"])
    def test_choices_that_would_be_ignored(self, rows_file: Path, name: str) -> None:
        with pytest.raises(InputError, match=rf"rows\.jsonl is a file, which is read whole: leave out --{name}"):
            check(PrepareOptions.parse({"source": "hotpotqa", "input": str(rows_file), name: "train"}))

    def test_a_directory_has_no_revision(self, rows_file: Path) -> None:
        asked = {"source": "hotpotqa", "input": str(rows_file.parent), "split": "train", "config": "c"}
        check(PrepareOptions.parse(asked))
        with pytest.raises(InputError, match="is a directory, not a data set on the hub: leave out --revision"):
            check(PrepareOptions.parse(asked | {"revision": "v1"}))


def test_names_of_files_need_not_be_unicode(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / os.fsdecode(b"train-\xe9.jsonl")).write_text(json.dumps(row(1)))
    prepare_examples(PrepareOptions(source="hotpotqa", input=str(folder)), tmp_path / "data", tokenizer, "tiny")
    assert list(Shard(tmp_path / "data" / "hotpotqa").info["source"]["sha256"]) == ["train-\\udce9.jsonl"]


def test_every_source_is_known_by_its_name() -> None:
    sources = known_sources()
    assert {"synthetic", "records", "hotpotqa"} < set(sources)
    assert all(name == source.name for name, source in sources.items())
    assert all(dataclasses.is_dataclass(source) for source in sources.values())
