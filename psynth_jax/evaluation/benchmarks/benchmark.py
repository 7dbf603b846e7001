"""A benchmark: a task whose branches are written live, by workers that are asked its questions.

    rows -> Question (no branches) -> worker_prompt -> live workers -> Question with branches
                                                                        -> methods -> judged

What a synthesizer is asked is `Question.query`; what a worker is asked may be another text.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from psynth_jax.data.sources import hub
from psynth_jax.data.sources.rows import PlacedRow, find_input, read_file, read_rows
from psynth_jax.errors import DataError, InputError
from psynth_jax.evaluation.tasks import Question, Task


@dataclasses.dataclass(frozen=True)
class BenchmarkQuestion(Question):
    """A question of a benchmark.

    worker_prompt: what every worker is asked; a role may follow it.  answers: the right answer, as
    the benchmark writes it.  details: what scoring needs besides, such as tests, as JSON values; it
    is not shown to any model.
    """

    worker_prompt: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class HubData:
    """Where a data set is on the Hugging Face hub.

    revision: the commit that is read unless another one is asked for; None: the newest one.
    """

    name: str
    split: str
    revision: str | None = None
    config: str | None = None


class Benchmark(Task):
    """Questions of a published benchmark, read from a file or from the hub.

    name: as on the command line.  hub: where its data are without a file.  max_new_tokens: of an
    answer and of a worker, as published.  private: its authors ask that nobody shows its questions;
    a run's files hold a digest in place of every text that has a question in it.
    """

    name: ClassVar[str]  # type: ignore[misc]
    hub: ClassVar[HubData | None] = None
    max_new_tokens: ClassVar[int] = 4096  # type: ignore[misc]

    def __init__(self, data: str | None = None, revision: str | None = None):
        """Name a local file; None: the data set on the hub, at `revision`, or the one of `hub`.

        Raises `InputError` for a revision of a local file, and where there is nothing to read.
        """
        if data is not None and revision is not None:
            reason = f"{data!r} is a file: leave out one of them"
            raise InputError(f"revision {revision!r} is of data on the hub; {reason}")
        if data is None and self.hub is None:
            raise InputError(f"{self.name} is on no hub; give it a file of its data")
        self.data = data
        self.revision = revision
        if data is None and self.hub is not None and revision is None:
            self.revision = self.hub.revision

    @abc.abstractmethod
    def question(self, where: str, row: Mapping[str, Any], number: int) -> BenchmarkQuestion:
        """Return the question of a row; `number` counts rows from 0.

        Raises `DataError` that begins with `where` (the file and the line) and names the field that
        is missing or wrong.
        """

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """Return all questions, in the order of the data.

        Raises `DataError` naming the file and row that lacks something, an id that comes twice, and
        data that are not to be had.
        """
        found: dict[str, BenchmarkQuestion] = {}
        for number, (where, row) in enumerate(self.rows()):
            question = self.question(where, row, number)
            if question.id in found:
                raise DataError(f"{where}: the id {question.id!r} is there twice")
            found[question.id] = question
        if not found:
            raise DataError(f"{self.data or self.name} holds no row")
        return list(found.values())

    def rows(self) -> list[PlacedRow]:
        """Read the rows of the file, or of the data set on the hub.

        Afterwards `revision` is the commit that was read, so that the settings of a run name it.
        """
        if self.data is not None:
            return list(read_file(local_file(self.data), shown=self.data))
        assert self.hub is not None  # checked when it was made
        if self.revision is None:
            self.revision = hub.find(self.hub.name, None).commit
        return list(read_rows(self.hub.name, self.revision, self.hub.config, self.hub.split))

    def settings(self) -> Mapping[str, object]:
        """Return which benchmark this is and which commit of its data; a file has no commit."""
        return {"benchmark": self.name, "revision": self.revision}

    @abc.abstractmethod
    def judged(self, written: str, question: Question) -> tuple[str, Mapping[str, float]]:
        """Return the answer in what was written, and its scores.

        `accuracy` is the first of them; `accuracy_published` follows where the published rule
        differs.  Every question has the same names.
        """

    def score(self, prediction: str, question: Question) -> Mapping[str, float]:
        """Return the scores of a text that is nothing but an answer."""
        return self.judged(prediction, question)[1]


def details_of(question: Question) -> Mapping[str, Any]:
    """Return what scoring needs of a question.  Raises `InputError` for one of another task."""
    if not isinstance(question, BenchmarkQuestion):
        raise InputError(f"question {question.id!r} of {question.task} is no benchmark's question")
    return question.details


def local_file(data: str) -> Path:
    """Return where a file is, copied to this disk if it lies in a bucket.

    Raises `DataError` where there is none: a name of the hub is not meant.
    """
    path = find_input(data)
    if path is None or not path.is_file():
        raise DataError(f"there is no file {data}")
    return path
