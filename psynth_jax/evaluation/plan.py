"""What an evaluation asks of whom, and how: all that can be checked before there is a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Self

from psynth_jax.errors import InputError
from psynth_jax.evaluation.lines import Shard
from psynth_jax.evaluation.live import WorkerOptions
from psynth_jax.evaluation.methods import Method
from psynth_jax.evaluation.tasks import Question, Task
from psynth_jax.evaluation.wrong_branches import with_wrong_branches
from psynth_jax.synthesis.sampling import SamplingOptions, checked_seed


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of whom, and how.

    everything: all questions of the task; questions: those that are asked, by all processes together.
    batch: questions that one call answers.  workers: how live workers write; None: the questions have branches.
    shard: the part of the questions that this process asks.
    """

    task: Task
    everything: Sequence[Question]
    questions: Sequence[Question]
    methods: Sequence[Method]
    batch: int
    max_new_tokens: int
    temperature: float
    seed: int
    workers: WorkerOptions | None = None
    shard: Shard = Shard()  # noqa: RUF009  it is frozen

    @classmethod
    def of(
        cls,
        task: Task,
        methods: Sequence[Method],
        limit: int | None = None,
        batch: int = 8,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        workers: WorkerOptions | None = None,
        shard: Shard = Shard(),  # noqa: B008  it is frozen
    ) -> Self:
        """Read the task's data and check everything that can be checked without a model.

        Args:
          methods: see `methods.choose`.
          limit: ask the first so many questions; None asks all.
          max_new_tokens: longest answer; None: as long as the task says.
          temperature: 0 is greedy.
          seed: of the drawing of answers, and of the bootstrap.
          workers, shard: see `Plan`.

        Raises:
          DataError: the data cannot be used, or has no wrong branches to give.
          InputError: a number is out of range.
        """
        for name, value, least in (("limit", limit, 1), ("batch", batch, 1), ("seed", seed, 0)):
            if value is not None and value < least:
                raise InputError(f"{name} is {value}; it must be at least {least}")
        longest = task.max_new_tokens if max_new_tokens is None else max_new_tokens
        SamplingOptions(longest, temperature)
        checked_seed(seed)
        everything = task.questions()
        asked = everything[:limit]
        if shard.count > len(asked):
            raise InputError(f"shard {shard.number}/{shard.count}: there are {len(asked)} questions only")
        plan = cls(task, everything, asked, methods, batch, longest, temperature, seed, workers, shard)
        for method in methods:
            if workers is None:
                plan.asked(method)
            elif method.of_another:
                with_wrong_branches(plan.own(asked))  # their answers must differ, whatever workers write
        return plan

    def own(self, questions: Sequence[Question]) -> list[Question]:
        """Return the part of the questions that this process asks."""
        return self.shard.of(list(questions))

    def asked(self, method: Method) -> Sequence[Question]:
        """Return questions with branches as a method gets them.  Whose branches are wrong does not depend on the limit."""
        if method.of_another:
            return self.own(with_wrong_branches(self.everything)[: len(self.questions)])
        return self.own(self.questions)

    def batches(self, questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
        """Cut questions into batches of similar size, the smallest first."""
        ordered = sorted(questions, key=_size)
        for first in range(0, len(ordered), self.batch):
            yield ordered[first : first + self.batch]


def _size(question: Question) -> int:
    return sum(len(branch.text) + len(branch.prefix) for branch in question.branches) + len(question.query)
