"""The examples run as printed, and stay short enough to be read."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def output_of(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    monkeypatch.setattr(sys, "argv", [name, *options, "--model", "tiny-random"])
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.slow
def test_many_questions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = output_of("many_questions.py", capsys, monkeypatch, "--questions", "4", "--tokens", "5")
    assert shown.count("How many pens are there?") == 4
    written = re.search(r"^4 questions, (\d+) tokens in \d+ s, all included$", shown, re.M)
    assert written is not None and 4 * 3 * 5 >= int(written[1]) > 0


@pytest.mark.slow
def test_fork(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "document.txt"
    document.write_text("Free to all who ask for it. " * 5)
    shown = output_of("fork.py", capsys, monkeypatch, str(document), "--tokens", "4")
    counts = re.search(r"^the reviewers' prompts have ([\d,]+) tokens, of which ([\d,]+) were prefilled$", shown, re.M)
    assert counts is not None
    asked, run = (int(count.replace(",", "")) for count in counts.groups())
    assert run < asked / 2


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_short(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 100
