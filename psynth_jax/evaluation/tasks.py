"""What is asked: a task turns its data into questions, and tells how an answer is read and scored.

`QATask` takes a file of records with short answers.  Another benchmark is another `Task`: it makes `Question`s of its own
data, takes the answer out of what was written (a boxed number, a block of code), and scores it under names of its choice.
A task knows no model and no method.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from psynth_jax.data.final_answer import final_answer
from psynth_jax.data.record import BranchText, Record, read_records
from psynth_jax.errors import DataError
from psynth_jax.evaluation.scoring import exact_match, normalise, token_f1
from psynth_jax.storage.paths import AnyPath, as_path


@dataclasses.dataclass(frozen=True)
class Written:
    """What a live worker wrote.  prompt: what it was asked.  role: the name of its role; "" for none."""

    prompt: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    role: str = ""


@dataclasses.dataclass(frozen=True)
class Question:
    """What a method gets: the question, its branches, and the answers that are accepted.

    id: unique within its task.  task: the data set that it comes from, as its record says; one file may hold several.
    workers: those who wrote the branches live; nobody, where the branches come from a file.
    """

    id: str
    task: str
    query: str
    branches: tuple[BranchText, ...]
    answers: tuple[str, ...]
    workers: tuple[Written, ...] = dataclasses.field(default=(), kw_only=True)

    def written_by(self, workers: Sequence[Written]) -> Self:
        """Return the question with what workers wrote as its branches."""
        branches = tuple(BranchText(worker.text) for worker in workers)
        return dataclasses.replace(self, branches=branches, workers=tuple(workers))

    @property
    def texts(self) -> list[str]:
        """What the synthesizer reads, a text per branch."""
        return [branch.text for branch in self.branches]

    @property
    def prefixes(self) -> list[str]:
        """What stands before each text and is not kept."""
        return [branch.prefix for branch in self.branches]

    def shares_an_answer(self, other: Question) -> bool:
        """Whether an answer of one is right for the other, too."""
        return bool({normalise(answer) for answer in self.answers} & {normalise(answer) for answer in other.answers})


class Task(abc.ABC):
    """Questions, and how their answers are read and scored.

    name: of the task.  max_new_tokens: how long an answer may be.  main_score: the name of the score that counts, where
    only one can.  private: its authors ask that questions are not shown in plain text; a run keeps digests of them.
    """

    name: str
    max_new_tokens: int
    main_score: str = "accuracy"
    private: ClassVar[bool] = False

    @abc.abstractmethod
    def questions(self) -> Sequence[Question]:
        """Return all questions, in an order that never changes.  Raises `DataError` for data that cannot be used."""

    def extract(self, written: str) -> str:
        """Return the answer in what was written: all of it, if a task does not say otherwise."""
        return written.strip()

    def normalise(self, prediction: str) -> str:
        """Return what extracted answers have in common when they are one answer; a vote counts by it."""
        return normalise(prediction)

    def settings(self) -> Mapping[str, object]:
        """Return what rows must share to be compared, beside the questions; nothing, if a task does not say otherwise."""
        return {}

    def vote_key(self, written: str, question: Question) -> str:
        """Return what texts have in common when they give one answer; "" for a text without an answer."""
        return self.normalise(self.extract(written))

    def judged(self, written: str, question: Question) -> tuple[str, Mapping[str, float]]:
        """Return the answer in what was written, and its scores."""
        prediction = self.extract(written)
        return prediction, self.score(prediction, question)

    @abc.abstractmethod
    def score(self, prediction: str, question: Question) -> Mapping[str, float]:
        """Return the scores of an extracted answer by name, each from 0 to 1; the names are the same for every question."""


class QATask(Task):
    """Questions with short answers from a file of records (JSON lines or a JSON list, plain or gzipped); EM and F1.

    final_answer: of what was written, only what stands behind the last `Answer:` is scored.
    """

    main_score = "f1"

    def __init__(self, path: str | AnyPath, max_new_tokens: int = 32, final_answer: bool = False):
        """Name the file; it is read when questions are asked for."""
        self.final_answer = final_answer
        self.path = as_path(path)
        self.name = self.path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
        self.max_new_tokens = max_new_tokens

    def questions(self) -> Sequence[Question]:
        """Read the file.  Raises `DataError` for a record without answers, an id that comes twice, or an empty file."""
        found: dict[tuple[str, str], Question] = {}
        for record in read_records(self.path):
            if (record.task, record.id) in found:
                raise DataError(f"{self.path}: record {record.id!r} of task {record.task} is there twice")
            found[record.task, record.id] = self._question(record)
        if not found:
            raise DataError(f"{self.path} holds no record")
        return list(found.values())

    def extract(self, written: str) -> str:
        """Return all that was written, or the final answer in it."""
        if self.final_answer:
            return final_answer(written)
        return super().extract(written)

    def settings(self) -> Mapping[str, object]:
        """Return whether answers are cut out of what was written."""
        return {"final_answer": self.final_answer}

    def score(self, prediction: str, question: Question) -> Mapping[str, float]:
        """Return EM and F1 against the accepted answer that fits best."""
        return {"em": exact_match(prediction, question.answers), "f1": token_f1(prediction, question.answers)}

    def _question(self, record: Record) -> Question:
        answers = tuple(answer for answer in record.answers if answer.strip())
        if not answers:
            raise DataError(f'{self.path}: record {record.id!r} has no answers to score against; give it "answers": [...]')
        return Question(record.id, record.task, record.query, record.branches, answers)


def questions_digest(questions: Sequence[Question]) -> str:
    """Return a digest of all that is asked: two files with the same questions in the same order have the same one."""
    digest = hashlib.sha256()
    for question in questions:
        asked = dataclasses.asdict(question)
        del asked["workers"]  # they have written after the question was asked
        digest.update(json.dumps(asked, sort_keys=True).encode())
    return digest.hexdigest()
