"""`psynth report`: one JSON object, a table for people, one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command, Refused
from tests.reports.evaluation_folders import write_folder


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


class TestEval:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_folder(tmp_path / "sums", 10)

    def test_json(self, psynth: Command, folder: Path, tmp_path: Path) -> None:
        found = psynth("report", "eval", folder, "--into", tmp_path / "page", "--json").json
        assert list(found) == ["page", "pictures", "evaluations"]
        assert found["page"] == str(tmp_path / "page" / "report.html")
        assert all(Path(path).is_file() for path in (found["page"], *found["pictures"]))

    def test_for_people(self, psynth: Command, folder: Path) -> None:
        done = psynth("report", "eval", folder)
        assert (done.code, done.out) == (0, "")
        said = "".join(part.strip(" │") for part in done.err.splitlines())
        assert "report.html" in said and "report_accuracy.png" in said

    def test_a_name_with_brackets(self, psynth: Command, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "[red]a[/b]", 10)
        said = psynth("report", "eval", folder).err
        assert "[red]a[/b]/report.html" in "".join(said.replace("│", "").split())

    def test_several(self, psynth: Command, folder: Path, tmp_path: Path) -> None:
        other = write_folder(tmp_path / "other", 10)
        found = psynth("report", "eval", folder, other, "--into", tmp_path / "page", "--json").json
        assert [each["name"] for each in found["evaluations"]] == ["sums", "other"]
        assert found["pictures"][0] == str(tmp_path / "page" / "report_comparison.png")

    def test_limit_of_texts(self, psynth: Command, folder: Path) -> None:
        for limit, said in (("12", True), ("0", False), ("20000", False)):
            psynth("report", "eval", folder, "--limit-text", limit)
            assert ("more characters]" in (folder / "report.html").read_text()) == said

    def test_refused(self, refused: Refused, folder: Path, tmp_path: Path) -> None:
        assert "there is no folder" in refused("report", "eval", tmp_path / "absent")
        assert "it has no settings.json" in refused("report", "eval", tmp_path)
        assert "limit-text is -1" in refused("report", "eval", folder, "--limit-text", "-1")
        assert "say where it goes with --into" in refused("report", "eval", folder, folder)
        assert "cannot write /proc/page: " in refused("report", "eval", folder, "--into", "/proc/page")
        with (folder / "questions.jsonl").open("a") as file:
            file.write("{\n")
        assert "questions.jsonl:11: not JSON" in refused("report", "eval", folder)
