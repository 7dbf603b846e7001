"""`psynth convert` and `psynth merge`, and the tables of what becomes what."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import psynth_jax as ps
from psynth_jax.convert import load
from tests.cli.conftest import Command, Refused
from tests.cli.conversion_table import table
from tests.tiny import random_lora

ROOT = Path(__file__).parents[2]


@pytest.fixture
def adapters(model_directory: Path, tmp_path: Path) -> list[Path]:
    model = ps.load_model(model_directory)
    places = [tmp_path / "first", tmp_path / "second"]
    for seed, place in enumerate(places):
        ps.save_adapter(place, ps.Adapter(random_lora(model.config, seed), None), model, {"steps": seed})
    return places


@pytest.mark.parametrize("document", ["README.md", "docs/convert.md"])
def test_documents_have_the_table_of_the_code(document: str) -> None:
    text = (ROOT / document).read_text()
    marks = [f"<!-- psynth_jax.convert.convert.table: {mark} -->" for mark in ("begin", "end")]
    assert text.split(marks[0])[1].split(marks[1])[0].strip() == table()


def test_a_model_there_and_back(psynth: Command, model_directory: Path, tmp_path: Path) -> None:
    found = psynth("convert", model_directory, tmp_path / "ours", "--to", "psynth", "--json").json
    size = sum(path.stat().st_size for path in (tmp_path / "ours").rglob("*") if path.is_file())
    assert found == {
        "kind": "model",
        "source": str(model_directory),
        "target": str(tmp_path / "ours"),
        "to": "psynth",
        "base": None,
        "bytes": size,
        "dropped": [],
    }
    done = psynth("convert", tmp_path / "ours", tmp_path / "back", "--to", "hf")
    assert done.code == 0 and done.out == "" and re.search(r"model of [\d.]+ MB in ", done.err)
    for path in model_directory.glob("*.json"):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    answers = [
        psynth("run", "Why?", "--branch", "Because.", "--model", model, "--max-new-tokens", 8, "--json").json["answer"]
        for model in (model_directory, tmp_path / "ours", tmp_path / "back")
    ]
    assert len(set(answers)) == 1 and answers[0]


@pytest.mark.slow
def test_an_adapter_published_merged_and_used(
    psynth: Command, model_directory: Path, adapters: list[Path], tmp_path: Path
) -> None:
    published, merged = tmp_path / "published", tmp_path / "merged"
    assert psynth("convert", adapters[0], published, "--to", "peft", "--json").json["base"] == str(model_directory)
    assert sorted(path.name for path in published.iterdir()) == ["README.md", "checkpoint_meta.json", "judger_lora"]
    psynth("convert", published, merged, "--to", "hf", "--merge", "--base", model_directory)
    question = ("run", "Why?", "--branch", "Because.", "--max-new-tokens", 8, "--json")
    answers = [
        psynth(*question, "--model", model_directory, "--adapter", adapter).json["answer"]
        for adapter in (adapters[0], published)
    ]
    assert answers[0] == answers[1] != psynth(*question, "--model", model_directory).json["answer"]
    assert psynth("run", "Why?", "--model", merged, "--workers", 1, "--max-new-tokens", 4, "--json").json["answer"]


def test_merge(psynth: Command, adapters: list[Path], tmp_path: Path) -> None:
    found = psynth("merge", *adapters, tmp_path / "both", "--weight", 0.25, "--mapper", "first", "--json").json
    assert 0 < found["error"] < 1 and found["weight"] == 0.25
    noted = json.loads((tmp_path / "both" / "psynth_adapter.json").read_text())["training"]
    assert noted["merged"]["error"] == found["error"]
    assert noted["sources"] == {"first": {"steps": 0}, "second": {"steps": 1}}
    said = psynth("merge", *adapters, tmp_path / "factors", "--how", "factors", "--mapper", "first")
    assert said.code == 0 and "lost 0.00%" in said.err


def test_refused(refused: Refused, adapters: list[Path], tmp_path: Path) -> None:
    assert "Missing option '--to'" in refused("convert", adapters[0], tmp_path / "out")
    assert "merge them, or convert to peft" in refused("convert", adapters[0], tmp_path / "out", "--to", "hf")
    assert "must be from 0 to 1" in refused("merge", *adapters, tmp_path / "out", "--weight", 2)
    assert "is not an empty directory" in refused("merge", *adapters, adapters[1])
    assert "no such directory" in refused("merge", adapters[0], tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_is_told_before_a_model_is_opened(
    refused: Refused, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(source: object) -> Path:
        raise AssertionError(f"{source} was opened")

    monkeypatch.setattr(load, "resolve", opened)
    out, nowhere = tmp_path / "out", tmp_path / "nowhere"
    assert "no such directory" in refused("merge", adapters[0], nowhere, out)
    assert "must be from 0 to 1" in refused("merge", *adapters, out, "--weight", 2)
    assert "deltas, factors" in refused("merge", *adapters, out, "--how", "sum")
    (adapters[1] / "psynth_adapter.json").unlink()
    assert "is not an adapter" in refused("merge", *adapters, out)
    assert "is an adapter" in refused("convert", adapters[0], out, "--to", "peft", "--base", adapters[0])
    assert "is not an empty directory" in refused("convert", adapters[0], adapters[1], "--to", "peft")


def test_a_base_of_another_machine(refused: Refused, adapters: list[Path], tmp_path: Path) -> None:
    file = adapters[0] / "psynth_adapter.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_name": "/data/ann/model"}))
    for command in (("convert", adapters[0], tmp_path / "out", "--to", "peft"), ("merge", *adapters, tmp_path / "out")):
        said = refused(*command)
        assert "/data/ann/model" in said and "--base" in said
    assert not (tmp_path / "out").exists()
