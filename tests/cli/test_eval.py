"""`psynth eval` on a tiny model: methods, the table, resumption, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import psynth_jax as ps
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.data.record import BranchText, Record, write_records
from psynth_jax.mapper import Mapper
from tests.cli.conftest import Command, Refused
from tests.tiny import random_lora, random_mapper

METHODS = ("text", "text-lora", "branches", "wrong-branches")  # with every kind of weights and of reading


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three questions; the texts of the last fit a window of 512 as branches only."""
    texts = (("Oslo is far.", "So is Bern."), ("Rome is warm.",), ("b" * 200, "c" * 200, "Bern is small."))
    records = [
        Record(f"q{number}", "cities", "Which city?", tuple(map(BranchText, each)), city, (city,))
        for number, (each, city) in enumerate(zip(texts, ("Oslo", "Rome", "Bern"), strict=True))
    ]
    write_records(tmp_path / "cities.jsonl", records)
    return tmp_path / "cities.jsonl"


@pytest.fixture
def adapters(model_directory: Path, tmp_path: Path) -> tuple[Any, ...]:
    model = ps.load_model(model_directory)
    ps.save_adapter(tmp_path / "a", Adapter(random_lora(model.config, 1), Mapper.from_arrays(random_mapper(1))), model)
    ps.save_adapter(tmp_path / "t", Adapter(random_lora(model.config, 2), None), model)
    return "--adapter", tmp_path / "a", "--text-adapter", tmp_path / "t"


@pytest.fixture
def evaluate(psynth: Command, model_directory: Path, data: Path, tmp_path: Path) -> Command:
    def run(*arguments: object) -> Any:
        common = ("--data", data, "--model", model_directory, "--into", tmp_path / "out", "--max-new-tokens", 8)
        return psynth("eval", *common, *arguments)

    return run


@pytest.mark.slow
def test_methods(evaluate: Command, adapters: tuple[Any, ...], tmp_path: Path) -> None:
    found = evaluate("--methods", ",".join(METHODS), *adapters, "--batch", 2, "--json").json
    assert found == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert tuple(found["methods"]) == METHODS
    unfit = {name: each["does_not_fit"] for name, each in found["methods"].items()}
    assert unfit == dict.fromkeys(METHODS, 0) | {"text": 1, "text-lora": 1}
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert sorted((row["method"], row["id"]) for row in rows) == sorted((m, f"q{n}") for m in METHODS for n in range(3))
    cached = {row["method"]: row["cached_tokens"] for row in rows if row["id"] == "q0"}
    assert cached == {"text": 0, "text-lora": 0, "branches": 23, "wrong-branches": 13}
    assert all(row["ttft_s"] > 0 and row["generated_tokens"] == 8 for row in rows if row["finish_reason"] == "length")
    written = {name: tuple(row["written"] for row in rows if row["method"] == name) for name in METHODS}
    assert len({written[name] for name in METHODS if name != "wrong-branches"}) == 3  # those were told by their tokens


def test_table(evaluate: Command) -> None:
    done = evaluate("--methods", "text,identity", "--limit", 2)
    assert (done.code, done.out) == (0, "")
    for word in ("identity", "EM", "F1", "TTFT", "0.0 [0.0, 0.0]", "2 questions.", "a batch of up to 8"):
        assert word in done.err
    assert "\x1b" not in done.err
    assert evaluate("--methods", "text", "--json").json["questions"] == 3  # the third is asked now
    assert "batch is 1, it was 8" in evaluate("--methods", "text", "--batch", 1).err


def test_votes_and_second_looks(evaluate: Command, adapters: tuple[Any, ...]) -> None:
    found = evaluate("--methods", "vote,self", *adapters[:2], "--limit", 2, "--json").json
    assert tuple(found["methods"]) == ("vote", "self") and found["sampling_seed"] == 0
    vote, own = found["methods"]["vote"], found["methods"]["self"]
    assert vote["ttft_s"] is None and vote["prompt_tokens"] == vote["cached_tokens"] == 0
    assert own["ttft_s"] > 0 and 1 <= own["cached_tokens"] <= 8
    said = evaluate("--methods", "vote", "--limit", 2)
    assert (said.code, said.out) == (0, "")
    assert "vote asks no model: it has no TTFT." in said.err


def test_one_question_is_one(evaluate: Command) -> None:
    assert "1 question." in evaluate("--methods", "text", "--limit", 1).err


def test_the_shipped_adapter_is_taken_where_it_fits(
    evaluate: Command, adapters: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psynth_jax.convert.adapters.shipped_adapter", lambda model: adapters[1])
    options = ("--methods", "branches", "--limit", 1)
    shipped = evaluate(*options)
    assert (shipped.code, shipped.out) == (0, "")
    assert "adapter: a (shipped)" in shipped.err
    assert evaluate(*options, "--json").json["adapter"] is not None


def test_no_adapter_is_shipped(evaluate: Command, tmp_path: Path) -> None:
    done = evaluate("--methods", "text,branches")
    assert (done.code, done.out) == (2, "")
    assert "branches needs an adapter, and none is shipped for" in done.err and done.err.count("\n") == 1


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--methods", "text,caches"), "no method 'caches'"),
            (("--methods", "branches,question", "--adapter", "none"), "branches, question needs an adapter (--adapter)"),
            (("--methods", "text,identity", "--adapter", "./a"), "--adapter and --methods text,identity contradict"),
            (("--methods", "text", "--text-adapter", "./a"), "--text-adapter and --methods text contradict"),
            (("--methods", "branches", "--adapter", "./absent"), "no such directory: ./absent"),
            (("--methods", "text", "--mesh", "branch"), "a mesh is written like branch=2,tensor=2"),
            (("--methods", "text-lora"), "(--text-adapter)"),
            (("--methods", "text", "--batch", 0), "batch is 0"),
            (("--methods", "text", "--dtype", "float8"), "float8"),
            (("--methods", "text", "--data", "absent.jsonl"), "cannot read absent.jsonl: No such file"),
        ],
    )
    def test_before_a_model_is_loaded(
        self, refused: Refused, data: Path, tmp_path: Path, arguments: tuple[Any, ...], said: str
    ) -> None:
        line = refused("eval", "--data", data, "--into", tmp_path / "out", "--model", "./absent", *arguments)
        assert said in line
        assert not (tmp_path / "out").exists()

    def test_damaged_data(self, refused: Refused, data: Path, tmp_path: Path) -> None:
        with data.open("a") as file:
            file.write('{"id": "q3"}\n')
        said = refused("eval", "--data", data, "--into", tmp_path / "out", "--methods", "text", "--model", "./absent")
        assert "cities.jsonl:4: record 'q3': missing branches" in said

    def test_an_adapter_that_is_not_there(self, refused: Refused, data: Path, model_directory: Path, tmp_path: Path) -> None:
        arguments = ("--data", data, "--model", model_directory, "--into", tmp_path / "out")
        assert "no such directory: absent" in refused("eval", *arguments, "--methods", "branches", "--adapter", "absent")
        assert not (tmp_path / "out").exists()
