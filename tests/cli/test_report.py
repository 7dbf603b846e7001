"""`psynth report train`: one JSON object, a table for people, one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command, Refused


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n')
    return tmp_path


def test_json(psynth: Command, workdir: Path) -> None:
    found = psynth("report", "train", workdir, "--into", workdir / "page", "--json").json
    assert found == {
        "page": str(workdir / "page" / "report.html"),
        "pictures": [str(workdir / "page" / "loss.png")],
        "steps": 2,
        "first_loss": 2.5,
        "final_loss": 2.0,
    }
    assert all(Path(path).is_file() for path in (found["page"], *found["pictures"]))


def test_for_people(psynth: Command, workdir: Path) -> None:
    done = psynth("report", "train", workdir)
    assert (done.code, done.out) == (0, "")
    assert "final_loss" in done.err and (workdir / "report" / "report.html").is_file()


def test_refused(refused: Refused, tmp_path: Path) -> None:
    assert "has no metrics.jsonl" in refused("report", "train", tmp_path)


def test_a_folder_that_cannot_be_written(refused: Refused, workdir: Path) -> None:
    assert "cannot write /proc/page: " in refused("report", "train", workdir, "--into", "/proc/page")


def test_damaged_lines_are_told(psynth: Command, workdir: Path) -> None:
    with (workdir / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    assert "damaged_lines" in psynth("report", "train", workdir).err
