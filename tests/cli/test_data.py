"""`psynth data`: prepare, show and info, as JSON and as people see them."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from psynth_jax.cli import data_progress
from psynth_jax.data.example import Lengths
from psynth_jax.data.prepare import Tally
from psynth_jax.data.record import read_records
from psynth_jax.data.shards import Shard, open_shards
from psynth_jax.data.synthetic import synthetic_records
from tests.cli.conftest import Command, ModelCopy, Refused
from tests.tiny import byte_tokenizer


@pytest.fixture
def prepared(psynth: Command, model_directory: Path, tmp_path: Path) -> Path:
    into = tmp_path / "data"
    arguments = ("--into", into, "--model", model_directory, "--limit", 9, "--option", "kinds=join,count")
    found = psynth("data", "prepare", "synthetic", *arguments, "--json").json
    assert found == {
        "source": "synthetic",
        "input": None,
        "into": str(into),
        "rows": 9,
        "tasks": {"synthetic_join": 5, "synthetic_count": 4},
        "dropped": {},
        "directories": {f"synthetic_{kind}": str(into / f"synthetic_{kind}") for kind in ("join", "count")},
    }
    return into


class TestPrepare:
    def test_examples(self, prepared: Path, model_directory: Path) -> None:
        count, join = open_shards(prepared)
        assert (count.task, len(count), join.task, len(join)) == ("synthetic_count", 4, "synthetic_join", 5)
        assert count.info["model"] == str(model_directory)

    def test_records(self, psynth: Command, tmp_path: Path) -> None:
        file = tmp_path / "records.jsonl"
        arguments = ("--records", file, "--limit", 4, "--seed", 7, "--split", "test")
        assert psynth("data", "prepare", "synthetic", *arguments, "--json").json["rows"] == 4
        assert list(read_records(file)) == list(synthetic_records(count=4, seed=7, split="test"))

    def test_what_people_see(self, psynth: Command, tmp_path: Path) -> None:
        value = {"_id": "q", "question": "Who?", "answer": "Ann", "context": [["Ann", ["Ann wrote it."]]]}
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(value | change) + "\n" for change in ({}, {"answer": ""}, {"answer": None})))
        done = psynth("data", "prepare", "hotpotqa", file, "--records", tmp_path / "records.jsonl")
        assert (done.code, done.out) == (0, "")
        assert "3 rows read" in done.err and "no answer" in done.err and "2 dropped in all" in done.err

    def test_one_of_each_is_said_so(self, psynth: Command, tmp_path: Path) -> None:
        value = {"_id": "q", "question": "Who?", "answer": "Ann", "context": [["Ann", ["Ann wrote it."]]]}
        (tmp_path / "rows.jsonl").write_text(json.dumps(value))
        done = psynth("data", "prepare", "hotpotqa", tmp_path / "rows.jsonl", "--records", tmp_path / "records.jsonl")
        assert "hotpotqa: 1 row read, 1 written to" in done.err

    def test_says_where_each_task_is(self, psynth: Command, model_directory: Path, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        done = psynth("data", "prepare", "synthetic", "--into", "d", "--model", model_directory, "--limit", 1)
        assert "d/synthetic_lookup" in done.err
        again = ("data", "prepare", "synthetic", "--into", "d/synthetic_lookup", "--model", model_directory, "--limit", 1)
        assert "give d, or another directory" in psynth(*again).err

    def test_tokens_without_an_embedding(self, refused: Refused, model_copy: ModelCopy, tmp_path: Path) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.backend.add_tokens(["lake"])
        tokenizer.backend.save_pretrained(model_copy.path)
        value = {"id": "r", "task": "qa", "query": "Which lake?", "target": "Ann", "branches": [{"text": "Ann wrote it."}]}
        (tmp_path / "r.jsonl").write_text(json.dumps(value))
        arguments = ("records", tmp_path / "r.jsonl", "--into", tmp_path / "d", "--model", model_copy.path)
        assert "task qa, example 'r': its token 258 ('lake') has no embedding in" in refused("data", "prepare", *arguments)
        assert not (tmp_path / "d").exists()

    def test_source_and_input_are_checked_before_the_model(self, refused: Refused, tmp_path: Path) -> None:
        arguments = ("--into", tmp_path / "d", "--model", tmp_path / "no-model")
        assert "no data at" in refused("data", "prepare", "hotpotqa", tmp_path / "none.jsonl", *arguments)
        assert "no source 'wiki'" in refused("data", "prepare", "wiki", *arguments)
        (tmp_path / "file").write_text("mine")
        arguments = ("--limit", 1, "--model", tmp_path / "no-model", "--into", tmp_path / "file")
        assert "file is a file: --into names a directory" in refused("data", "prepare", "synthetic", *arguments)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("synthetic",), "give --into DIR and --model M for tokenised examples, or --records FILE alone"),
            (("synthetic", "--into", "d"), "give --into DIR and --model M"),
            (("synthetic", "--records", "r.jsonl", "--model", "m"), "--records FILE alone"),
            (("synthetic", "--records", "r.jsonl"), "say with --limit how many"),
            (("synthetic", "--records", "r.jsonl", "--limit", 0), "limit: Input should be greater than"),
            (("wiki", "--records", "r.jsonl"), "no source 'wiki'; choose from"),
            (("hotpotqa", "none.jsonl", "--records", "r.jsonl"), "no data at none.jsonl"),
            (("hotpotqa", "a.jsonl", "--records", "r", "--option", "styl=short"), "with a key of: style, max_contexts"),
            (("hotpotqa", "a.jsonl", "--records", "r", "--option", "style=long"), "style: Input should be 'short' or"),
            (
                ("hotpotqa", "a.jsonl", "--records", "r", "--option", "style=short", "--option", "style=short"),
                "'style=short' is given twice",
            ),
        ],
    )
    def test_refused(
        self, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], said: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert said in refused("data", "prepare", *arguments)
        assert list(tmp_path.iterdir()) == []

    def test_model_without_tokenizer(self, refused: Refused, model_copy: ModelCopy, tmp_path: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (model_copy.path / name).unlink()
        arguments = ("--into", tmp_path / "d", "--model", model_copy.path, "--limit", 3)
        assert "has no tokenizer" in refused("data", "prepare", "synthetic", *arguments)


class TestProgress:
    def test_a_line_now_and_then_where_nobody_looks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data_progress, "FIRST", 0.001)
        written = io.StringIO()

        def wait_for(line: str) -> None:
            """Wait until the thread has come to its turn, which may take long where much else runs."""
            for _ in range(60_000):
                if line in written.getvalue():
                    return
                time.sleep(0.001)
            pytest.fail(f"{line!r} was never written")

        with data_progress.progress(Console(file=written, width=40), 100) as stage:
            stage.says("opening the tokenizer of m")
            wait_for("opening the tokenizer of m\n")
            stage.watch(Tally(1, Counter({"qa": 1200}), Counter({"no answer": 3})))
            wait_for("1 row read · 1,200 written · 3 dropped\n")
        assert written.getvalue().startswith("opening the tokenizer of m\n")

    def test_quick_commands_say_nothing(self) -> None:
        written = io.StringIO()
        with data_progress.progress(Console(file=written), None) as stage:
            stage.says("reading")
        assert written.getvalue() == ""

    @pytest.mark.parametrize("total", [None, 10])
    def test_a_bar_on_a_terminal(self, total: int | None) -> None:
        written = io.StringIO()
        with data_progress.progress(Console(file=written, force_terminal=True, width=100), total) as stage:
            stage.watch(Tally(5, Counter({"qa": 4}), Counter()))
        assert "5 rows read · 4 written · 0 dropped" in written.getvalue() and "━" in written.getvalue()


class TestShow:
    def test_json(self, psynth: Command, prepared: Path) -> None:
        record = list(synthetic_records(["join", "count"], 9))[4]
        found = psynth("data", "show", prepared / "synthetic_join", "--number", 2, "--json").json
        assert (found["task"], found["id"], found["number"], found["count"]) == ("synthetic_join", record.id, 2, 5)
        assert found["target"] == record.target + "<|im_end|>"
        branches = [(each["prefix"], each["text"]) for each in found["branches"]]
        assert branches == [(branch.prefix, branch.text) for branch in record.branches]
        assert [each["tokens"] for each in found["branches"]] == [len(branch.text) for branch in record.branches]
        assert found["prompt"].startswith("<|im_start|>user\n") and record.query in found["prompt"]
        assert record.branches[0].text in found["pasted"] and record.query in found["pasted"]
        shard = Shard(prepared / "synthetic_join")
        assert found["lengths"] == dict(zip(Lengths._fields, shard.lengths[2].tolist(), strict=True))

    def test_what_people_see(self, psynth: Command, prepared: Path) -> None:
        done = psynth("data", "show", prepared / "synthetic_join")
        assert (done.code, done.out) == (0, "")
        record = next(synthetic_records(["join"], 1))
        assert f"branch {len(record.branches)} ·" in done.err and record.target in done.err

    def test_refused(self, refused: Refused, prepared: Path, model_copy: ModelCopy) -> None:
        one = prepared / "synthetic_join"
        assert "has several tasks, show one: " in refused("data", "show", prepared)
        assert "it has 5 examples, 0 to 4" in refused("data", "show", one, "--number", 5)
        assert "it has 5 examples, 0 to 4" in refused("data", "show", one, "--number", -1)
        assert "there are no examples in" in refused("data", "show", prepared.parent)
        template = model_copy.path / "chat_template.jinja"
        template.write_text(template.read_text() + " ")
        assert "another than this model's" in refused("data", "show", one, "--model", model_copy.path)


class TestInfo:
    def test_json(self, psynth: Command, prepared: Path, model_directory: Path) -> None:
        found = psynth("data", "info", prepared, "--json").json
        assert list(found["tasks"]) == ["synthetic_count", "synthetic_join"]
        join = found["tasks"]["synthetic_join"]
        assert (join["count"], join["model"], join["dropped"]) == (5, str(model_directory), {})
        assert join["source"]["options"]["kinds"] == ["join", "count"]
        lengths = Shard(prepared / "synthetic_join").lengths
        for column, name in enumerate(Lengths._fields):
            values = np.sort(lengths[:, column])
            expected = {"min": values[0], "p50": values[2], "p90": values[4], "p99": values[4], "max": values[4]}
            assert join["lengths"][name] == expected | {"mean": values.mean(), "total": values.sum()}

    def test_what_people_see(self, psynth: Command, prepared: Path) -> None:
        done = psynth("data", "info", prepared / "synthetic_count")
        assert (done.code, done.out) == (0, "")
        assert "synthetic_count: 4 examples of synthetic" in done.err
        assert "p99" in done.err and "nothing was dropped" in done.err

    def test_names_that_no_file_has(self, refused: Refused, tmp_path: Path) -> None:
        name = "x" * 5000
        assert "cannot read" in refused("data", "info", name)
        assert "cannot read" in refused("data", "show", name)
        assert "no data at" in refused("data", "prepare", "hotpotqa", name, "--records", tmp_path / "r.jsonl")
        synthetic = ("data", "prepare", "synthetic", "--limit", 1)
        assert "cannot write" in refused(*synthetic, "--records", name)
        assert "cannot write" in refused(*synthetic, "--into", name, "--model", "no-model")
        assert "cannot read" in refused("eval", "--data", name, "--into", tmp_path / "e", "--methods", "text")

    def test_refused(self, refused: Refused, prepared: Path) -> None:
        (prepared / "synthetic_join" / "lengths.npy").unlink()
        assert "lengths.npy is missing or damaged" in refused("data", "info", prepared)
