"""`psynth data attempts` on a tiny model: rows, resumption, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.data.record import read_records
from tests.cli.conftest import Command, Finished, Refused

QUESTION = "What is {n} and {n}?"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"question": QUESTION.format(n=n), "answer": f"#### {2 * n}"} for n in range(3)]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return file


@pytest.fixture
def attempt(psynth: Command, model_directory: Path, questions: Path, tmp_path: Path) -> Command:
    """Run `psynth data attempts` with short attempts, into attempts.jsonl."""

    def run(*arguments: object) -> Finished:
        into = ("--into", tmp_path / "attempts.jsonl", "--model", model_directory)
        short = ("--max-new-tokens", 6, "--workers", 2)
        return psynth("data", "attempts", questions, *into, *short, *arguments)

    return run


def rows_of(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "attempts.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_rows_are_made_once_and_read_by_the_source(
    attempt: Command,
    psynth: Command,
    tmp_path: Path,
) -> None:
    found = attempt("--json").json
    assert found == {
        "questions": 3,
        "new": 3,
        "into": str(tmp_path / "attempts.jsonl"),
        "model": found["model"],
    }
    rows = rows_of(tmp_path)
    assert [row["question"] for row in rows] == [QUESTION.format(n=n) for n in range(3)]
    assert all(len({*row["attempts"]}) == len(row["attempts"]) == 2 for row in rows)
    assert attempt("--json").json["new"] == 0 and rows_of(tmp_path) == rows
    written, made = tmp_path / "attempts.jsonl", tmp_path / "records.jsonl"
    assert psynth("data", "prepare", "attempts", written, "--records", made).code == 0
    targets = [record.target for record in read_records(made)]
    assert targets == ["Answer: 0", "Answer: 2", "Answer: 4"]


@pytest.mark.slow
def test_a_run_that_was_interrupted_gives_the_same_rows(attempt: Command, tmp_path: Path) -> None:
    assert attempt("--batch", 2).code == 0
    rows = rows_of(tmp_path)
    lines = (tmp_path / "attempts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "attempts.jsonl").write_text(lines[0] + lines[1][:20])
    done = attempt("--batch", 2)
    assert done.code == 0 and "2 of them new" in done.err
    assert rows_of(tmp_path) == rows


def test_rows_that_were_made_otherwise_are_not_continued(
    attempt: Command, refused: Refused, questions: Path, model_directory: Path, tmp_path: Path
) -> None:
    assert attempt("--limit", 1).code == 0
    into = ("--into", tmp_path / "attempts.jsonl", "--model", model_directory)
    said = refused("data", "attempts", questions, *into, "--max-new-tokens", 6, "--workers", 3)
    assert "attempts.jsonl:1 was made otherwise (workers was 2)" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workers", 0), "--workers is 0; it must be at least 1"),
        (("--batch", 0), "--batch is 0; it must be at least 1"),
        (("--limit", 0), "--limit is 0; it must be at least 1"),
        (("--temperature", 0), "at --temperature 0 4 workers need 4 roles to differ, got 1"),
        (("--temperature", -1), "temperature"),
        (("--into", "gs://bucket/file.jsonl"), "is in a bucket: rows are appended one by one"),
        (("--into", "no-folder/file.jsonl"), "there is no folder no-folder"),
    ],
)
def test_what_is_wrong_is_one_line(
    refused: Refused, questions: Path, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    into = () if "--into" in arguments else ("--into", tmp_path / "a.jsonl")
    assert said in refused("data", "attempts", questions, *into, "--model", "no-model", *arguments)


def test_files_of_something_else(refused: Refused, questions: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"id": 3}\n')
    arguments = ("--into", tmp_path / "other.jsonl", "--model", "no-model")
    said = refused("data", "attempts", questions, *arguments)
    assert "other.jsonl:1: not a row of attempts" in said
    questions.write_text('{"question": "Why?"}\n')
    arguments = ("--into", tmp_path / "a.jsonl", "--model", "no-model")
    said = refused("data", "attempts", questions, *arguments)
    assert "questions.jsonl:1: a row needs texts for question and answer" in said
    assert not (tmp_path / "a.jsonl").exists()
