"""Benchmarks by name, ours and those of other packages."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from psynth_jax.errors import InputError
from psynth_jax.evaluation.benchmarks import registry
from psynth_jax.evaluation.benchmarks.benchmark import Benchmark

SEVEN = ["aime24", "aime25", "gpqa", "gsm8k", "humaneval_plus", "mbpp_plus", "medqa"]
CLASSES = ["AIME24", "AIME25", "GPQA", "GSM8K", "HumanEvalPlus", "MBPPPlus", "MedQA"]


def declared(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = [importlib.metadata.EntryPoint(name, value, registry.GROUP) for name, value in values.items()]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == registry.GROUP else [])


@pytest.mark.parametrize(("name", "kind"), list(zip(SEVEN, CLASSES, strict=True)))
def test_ours(monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    declared(monkeypatch)
    found = registry.benchmark(name, "rows.jsonl")
    assert (type(found).__name__, found.name, found.data) == (kind, name, "rows.jsonl")
    assert found.max_new_tokens == (6000 if name.startswith("aime") else 4096)


def test_the_metadata_declare_the_same() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    group = project["entry-points"][registry.GROUP]
    assert group == {name: ":".join(place) for name, place in registry._OURS.items()}


def test_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    declared(monkeypatch, zebra="psynth_jax.evaluation.benchmarks.aime:AIME25", gsm8k="no.such:Thing")
    assert registry.names() == [*SEVEN, "zebra"]
    assert registry.benchmark("zebra", "rows.jsonl").name == "aime25"
    assert registry.benchmark("gsm8k", "rows.jsonl").name == "gsm8k"


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    declared(monkeypatch, broken="no.such.module:Thing", odd="json:dumps", base="psynth_jax.evaluation.tasks:Task")
    with pytest.raises(InputError) as caught:
        registry.benchmark("gsm8")
    listed = "aime24, aime25, base, broken, gpqa, gsm8k, humaneval_plus, mbpp_plus, medqa, odd"
    assert str(caught.value) == f"there is no benchmark 'gsm8'; there are {listed}"
    with pytest.raises(InputError) as caught:
        registry.benchmark("broken")
    told = "benchmark 'broken' of an unknown package (no.such.module:Thing) cannot be loaded: ModuleNotFoundError: "
    assert str(caught.value) == told + "No module named 'no'"
    for name in ("odd", "base"):
        with pytest.raises(
            InputError, match=f"^the entry point '{name}' of psynth_jax.benchmarks is no subclass of Benchmark$"
        ):
            registry.benchmark(name)


def test_revisions_are_of_the_hub() -> None:
    with pytest.raises(InputError, match=r"^revision 'abc' is of data on the hub; 'rows.jsonl' is a file"):
        registry.benchmark("gsm8k", "rows.jsonl", "abc")
    pinned: Benchmark = registry.benchmark("gsm8k")
    assert pinned.settings() == {"benchmark": "gsm8k", "revision": "e53f048856ff4f594e959d75785d2c2d37b678ee"}
    assert registry.benchmark("gsm8k", revision="abc").settings()["revision"] == "abc"
