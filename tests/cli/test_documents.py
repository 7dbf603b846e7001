"""docs/cli.md has the keys that `--json` prints, of the commands that are cheap to run."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Command

TEXT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def documented(command: str) -> set[str]:
    """Return the keys of a command: those in parentheses are of what is inside."""
    (row,) = re.findall(rf"^\| `psynth {command}` \| (.*) \|$", TEXT, re.MULTILINE)
    outer = re.sub(r"\([^)]*\)", "", row.split(";")[0])
    return set(re.findall(r"`(\w+)`", outer))


def test_run(psynth: Command, model_directory: Path) -> None:
    options = ("--branch", "x", "--max-new-tokens", 1, "--model", model_directory)
    assert set(psynth("run", "Why?", *options, "--json").json) == documented("run")


def test_info(psynth: Command, model_directory: Path) -> None:
    plain = set(psynth("info", "--json").json)
    assert plain == documented("info")
    assert set(psynth("info", model_directory, "--json").json) == plain | documented("info SOURCE")


def test_convert(psynth: Command, tmp_path: Path) -> None:
    found = psynth("convert", "tiny-random", tmp_path / "made", "--to", "hf", "--json").json
    assert set(found) == documented("convert")


def test_data(psynth: Command, tmp_path: Path) -> None:
    options = ("--into", tmp_path / "d", "--model", "tiny-random", "--limit", 1, "--json")
    assert set(psynth("data", "prepare", "synthetic", *options).json) == documented("data prepare")
    assert set(psynth("data", "info", tmp_path / "d", "--json").json) == documented("data info")
    assert set(psynth("data", "show", tmp_path / "d", "--json").json) == documented("data show")


def test_eval_of_standard_input(
    psynth: Command, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = '{"id": "a", "task": "t", "query": "Who?", "branches": [{"text": "Bo."}], "target": "Bo", "answers": ["Bo"]}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(record.encode())))
    options = ("--model", model_directory, "--into", tmp_path / "e", "--methods", "identity", "--max-new-tokens", 1)
    found = psynth("eval", "--data", "-", *options, "--json").json
    assert set(found) == documented("eval") and found["questions"] == 1
