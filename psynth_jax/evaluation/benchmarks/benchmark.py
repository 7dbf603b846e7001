"""A benchmark: a task whose branches are written live, by workers that are asked its questions.

    rows -> Question (no branches) -> worker_prompt -> live workers -> Question with branches -> methods -> judged

What a synthesizer is asked is `Question.query`; what a worker is asked may be another text.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from psynth_jax.evaluation.tasks import Question, Task


@dataclasses.dataclass(frozen=True)
class BenchmarkQuestion(Question):
    """A question of a benchmark.

    worker_prompt: what every worker is asked; a role may follow it.  answers: the right answer, as
    the benchmark writes it.  details: what scoring needs besides, such as tests; it is not shown to
    any model.
    """

    worker_prompt: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Benchmark(Task):
    """Questions of a published benchmark, read from a file or from the hub.

    name: as on the command line.  max_new_tokens: of an answer and of a worker, as published.
    """

    name: ClassVar[str]  # type: ignore[misc]
    max_new_tokens: ClassVar[int] = 4096  # type: ignore[misc]

    def __init__(self, data: str | None = None, revision: str | None = None):
        """Name a local file; None: the data set on the hub, at `revision`, or the one of `hub`."""
        self.data = data
        self.revision = revision

    @abc.abstractmethod
    def questions(self) -> Sequence[BenchmarkQuestion]:
        """Return all questions, in the order of the data.

        Raises `DataError` naming the file and row that lacks something, and data that are not to
        be had.
        """

    @abc.abstractmethod
    def judged(self, written: str, question: Question) -> tuple[str, Mapping[str, float]]:
        """Return the answer in what was written, and its scores.

        `accuracy` is the first of them; `accuracy_published` follows where the published rule
        differs.  Every question has the same names.
        """

    def score(self, prediction: str, question: Question) -> Mapping[str, float]:
        """Return the scores of a text that is nothing but an answer."""
        return self.judged(prediction, question)[1]
