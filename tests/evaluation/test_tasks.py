"""Tasks: what is read of a file of records, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from psynth_jax.data.record import BranchText, Record, write_records
from psynth_jax.errors import DataError
from psynth_jax.evaluation.tasks import QATask, questions_digest
from tests.evaluation.conftest import record


def test_reads_records(data: Path, records: list[Record]) -> None:
    task = QATask(data)
    questions = task.questions()
    assert task.name == "cities" and task.max_new_tokens > 0
    assert [question.id for question in questions] == ["q0", "q1", "q2", "q3", "q4"]
    assert questions[1].texts == ["Rome has harbour 1.", "Note x"] and questions[1].prefixes == ["", "Before: "]
    assert (questions[1].task, questions[1].query, questions[1].answers) == (
        "cities",
        "Which city has harbour 1?",
        ("Rome", "Rome city"),
    )


def test_scores_what_it_extracts(data: Path) -> None:
    task = QATask(data)
    question = task.questions()[0]
    assert task.extract(" Oslo.\n") == "Oslo."
    assert task.score("Oslo.", question) == {"em": 1.0, "f1": 1.0}
    assert task.score("the city", question) == {"em": 0.0, "f1": pytest.approx(2 / 3)}


def test_takes_the_final_answer_where_it_is_told_to(data: Path) -> None:
    task = QATask(data, final_answer=True)
    assert task.extract("It is far.\nAnswer: Oslo") == "Oslo"
    assert task.extract(" Oslo.\n") == "Oslo."
    assert QATask(data).extract("Answer: Oslo") == "Answer: Oslo"


def test_blank_answers_are_not_accepted(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", [dataclasses.replace(record(0, "Oslo"), answers=("", "Oslo"))])
    assert QATask(tmp_path / "a.jsonl").questions()[0].answers == ("Oslo",)


def test_the_same_id_in_two_tasks(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", [record(0, "Oslo"), record(0, "Rome", task="towns")])
    assert [question.task for question in QATask(tmp_path / "a.jsonl").questions()] == ["cities", "towns"]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([record(0, "Oslo"), record(0, "Rome")], r"'q0' of task cities is there twice"),
        ([dataclasses.replace(record(0, "Oslo"), answers=())], r"'q0' has no answers to score against"),
        ([], "holds no record"),
    ],
)
def test_files_that_cannot_be_scored(tmp_path: Path, records: list[Record], said: str) -> None:
    write_records(tmp_path / "a.jsonl", records)
    with pytest.raises(DataError, match=said):
        QATask(tmp_path / "a.jsonl").questions()


class TestDigest:
    def test_is_of_the_questions_and_not_of_the_file(self, data: Path, records: list[Record]) -> None:
        write_records(data.with_name("other.jsonl.gz"), records)
        digests = {questions_digest(QATask(path).questions()) for path in (data, data.with_name("other.jsonl.gz"))}
        assert len(digests) == 1

    def test_sees_everything(self, data: Path, records: list[Record]) -> None:
        questions = QATask(data).questions()
        changed = [
            [*questions[1:], questions[0]],
            questions[1:],
            *(
                [dataclasses.replace(questions[0], **change), *questions[1:]]
                for change in (
                    {"id": "other"},
                    {"task": "other"},
                    {"query": "other"},
                    {"answers": ("other",)},
                    {"branches": (BranchText("other"),)},
                    {"branches": (dataclasses.replace(questions[0].branches[0], prefix="other"), questions[0].branches[1])},
                )
            ),
        ]
        assert len({questions_digest(each) for each in [questions, *changed]}) == 1 + len(changed)
