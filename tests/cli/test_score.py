"""`psynth score`: targets scored by one adapter, or by two on the same records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.data.record import BranchText, Record, write_records
from psynth_jax.evaluation.likelihood import negative_log_likelihoods
from tests.cli.conftest import Command

RECORDS = [
    Record("1", "a", "Which?", (BranchText("The long one."), BranchText("Short.")), "red"),
    Record("2", "b", "Who?", (BranchText("One.", "told before"),), "two words"),
    Record("3", "a", "When?", (BranchText("At noon."),), "noon"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_records(tmp_path / "records.jsonl", RECORDS)
    return tmp_path / "records.jsonl"


def test_prints_json(psynth: Command, file: Path) -> None:
    done = psynth("score", "--data", file, "--model", "tiny-random", "--against", "none", "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    synth = ps.ParallelSynthesis(ps.load_model("tiny-random"))
    mean = float(np.mean(negative_log_likelihoods([synth], RECORDS)))
    assert found["all"]["first"]["value"] == pytest.approx(mean, abs=1e-4)
    assert found["all"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert {task: each["records"] for task, each in found.items()} == {"a": 2, "b": 1, "all": 3}


def test_prints_a_table(psynth: Command, file: Path) -> None:
    done = psynth("score", "--data", file, "--model", "tiny-random", "--reads", "text", "--limit", "1")
    assert done.code == 0
    assert "NLL a token" in done.err + done.out and "against" not in done.err + done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reads", "caches"], "--reads must be branches or text, got 'caches'"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--limit", "0"], "--limit must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_one_line(psynth: Command, file: Path, words: list[str], message: str) -> None:
    done = psynth("score", "--data", file, *words)
    assert done.code == 2 and message in done.err


def test_a_file_without_records(psynth: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    done = psynth("score", "--data", tmp_path / "empty.jsonl")
    assert done.code == 2 and "has no record" in done.err
