"""An evaluation: every question of a task, answered by every method, scored, kept row by row, and summed up.

    Plan (checked before a model is there) -> batches of questions of similar size -> method -> scores -> row -> summary

What stands in the folder already is not asked again.  Batches are cut from all questions, whatever is done already, so that
a run that was interrupted measures what an undisturbed one does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax

from psynth_jax.errors import ContextLengthError, InputError
from psynth_jax.evaluation import intervals
from psynth_jax.evaluation.methods import METHODS, Method, Synthesizers, with_wrong_branches
from psynth_jax.evaluation.rows import DOES_NOT_FIT, MEASURED, NO_MODEL, Row, RowFile
from psynth_jax.evaluation.summary import summarise
from psynth_jax.evaluation.tasks import Question, Task, questions_digest
from psynth_jax.evaluation.voting import elected
from psynth_jax.synthesis.pipeline import ParallelSynthesis, SynthesisResult
from psynth_jax.synthesis.sampling import SamplingOptions, checked_seed

OnRow = Callable[[Row], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of whom, and how.

    everything: all questions of the task; questions: those that are asked.  batch: questions that one call answers.
    """

    task: Task
    everything: Sequence[Question]
    questions: Sequence[Question]
    methods: Sequence[Method]
    batch: int
    max_new_tokens: int
    temperature: float
    seed: int

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
    ) -> Self:
        """Read the task's data and check everything that can be checked without a model.

        Args:
          methods: see `methods.choose`.
          limit: ask the first so many questions; None asks all.
          max_new_tokens: longest answer; None: as long as the task says.
          temperature: 0 is greedy.
          seed: of the drawing of answers, and of the bootstrap.

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
        plan = cls(task, everything, everything[:limit], methods, batch, longest, temperature, seed)
        for method in methods:
            plan.asked(method)
        return plan

    def asked(self, method: Method) -> Sequence[Question]:
        """Return the questions as a method gets them.  Whose branches are wrong does not depend on the limit."""
        return with_wrong_branches(self.everything)[: len(self.questions)] if method.of_another else self.questions

    def batches(self, questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
        """Cut questions into batches of similar size, the smallest first."""
        ordered = sorted(questions, key=_size)
        for first in range(0, len(ordered), self.batch):
            yield ordered[first : first + self.batch]


def _size(question: Question) -> int:
    return sum(len(branch.text) + len(branch.prefix) for branch in question.branches) + len(question.query)


def evaluate(plan: Plan, synthesizers: Synthesizers, into: str | Path, on_row: OnRow | None = None) -> dict[str, Any]:
    """Run what a plan asks for and is not in the folder yet; write and return the summary.

    Args:
      into: the folder; see rows.py.
      on_row: called with each row as it is written, and with those that were there.

    Raises:
      InputError: the folder holds rows that were made otherwise, or a method's adapter is not given.
      DataError: a row in the folder is damaged.
      MemoryLimitError: a batch is too large for the device.
    """
    ready = [(method, synthesizers.of(method)) for method in plan.methods]
    identity = synthesizers.base.model.identity
    same = {"model": identity.matches}
    file = RowFile(into, _settings(plan, synthesizers), _score_names(plan), same)
    options = {"max_new_tokens": plan.max_new_tokens, "temperature": plan.temperature, "seed": plan.seed}
    with file.open():
        for method, synth in ready:
            for batch in plan.batches(plan.asked(method)):
                done = [file.rows.get((method.name, question.task, question.id)) for question in batch]
                left = [question for question, row in zip(batch, done, strict=True) if row is None]
                for row in [row for row in done if row is not None]:
                    _tell(on_row, row)
                for row in _rows(plan.task, method, synth, left, options):
                    file.append(row)
                    _tell(on_row, row)
    rows = _complete(file, plan)
    facts = {"task": plan.task.name, "questions": len(plan.questions), **file.settings}
    drawn = {"kind": "percentile bootstrap", "level": intervals.LEVEL, "resamples": intervals.RESAMPLES}
    summary = facts | {"seed": plan.seed, "interval": drawn} | summarise(rows, _score_names(plan), plan.seed)
    file.write_summary(summary)
    return summary


def _tell(on_row: OnRow | None, row: Row) -> None:
    if on_row is not None:
        on_row(row)


def _rows(
    task: Task, method: Method, synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]
) -> Iterator[Row]:
    """Answer a batch.  Where it does not fit the context window it is halved, until what does not fit is alone."""
    if not questions:
        return
    if method.answer is None:
        for question in questions:
            yield _row(task, method, question, elected(task, question), 1) | _NO_MODEL
        return
    try:
        results = method.answer(synth, questions, options)
    except ContextLengthError as error:
        if len(questions) == 1:
            yield _row(task, method, questions[0], "", 1) | _nothing(task, questions[0], error)
            return
        half = len(questions) // 2
        yield from _rows(task, method, synth, questions[:half], options)
        yield from _rows(task, method, synth, questions[half:], options)
        return
    for question, result in zip(questions, results, strict=True):
        yield _row(task, method, question, result.text, len(questions)) | _measured(result)


def _row(task: Task, method: Method, question: Question, written: str, batch: int) -> Row:
    prediction, scores = task.judged(written, question)
    return {
        "id": question.id,
        "task": question.task,
        "method": method.name,
        "prediction": prediction,
        "answers": list(question.answers),
        **scores,
        "written": written,
        "batch": batch,
    }


def _measured(result: SynthesisResult) -> Row:
    return {
        "ttft_s": result.ttft_s,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "generated_tokens": len(result.token_ids),
        "finish_reason": result.finish_reason,
    }


# An answer that no model gave has no time, not one of 0 seconds, which would pass for a very fast one.
_NO_MODEL: Row = {
    "ttft_s": None,
    "prompt_tokens": 0,
    "cached_tokens": 0,
    "generated_tokens": 0,
    "finish_reason": NO_MODEL,
}


def _nothing(task: Task, question: Question, error: ContextLengthError) -> Row:
    nothing = dict.fromkeys(MEASURED)
    zeros = dict.fromkeys(task.judged("", question)[1], 0.0)
    return {**zeros, **nothing, "finish_reason": DOES_NOT_FIT, "error": str(error)}


def _complete(file: RowFile, plan: Plan) -> dict[str, list[Row]]:
    """Return the rows of every method that has answered all questions of the plan, in this run or before."""
    found = {}
    for name in METHODS:
        rows = [file.rows.get((name, question.task, question.id)) for question in plan.questions]
        if None not in rows:
            found[name] = [row for row in rows if row is not None]
    return found


def _score_names(plan: Plan) -> list[str]:
    return list(plan.task.judged("", plan.questions[0])[1])


def _settings(plan: Plan, synthesizers: Synthesizers) -> dict[str, Any]:
    """Return what rows must share to be compared with each other."""
    model, device = synthesizers.base.model, jax.devices()[0]
    used = {method.weights: synthesizers.of(method).adapter for method in plan.methods}
    draws = plan.temperature > 0 or any(method.draws for method in plan.methods)
    digests = {name: adapter.digest for name, adapter in used.items() if name != "base"}
    return {
        "format": 1,
        "data": questions_digest(plan.everything),
        **plan.task.settings(),
        "model": model.fingerprint,
        "template": dict(synthesizers.base.template),
        "dtype": model.decoder.dtype.name,
        "adapter": digests.get("adapter"),
        "text_adapter": digests.get("text_adapter"),
        "max_new_tokens": plan.max_new_tokens,
        "temperature": plan.temperature,
        "sampling_seed": plan.seed if draws else None,
        "batch": plan.batch,
        "device": device.device_kind,
        "mesh": {} if model.mesh is None else dict(model.mesh.shape),
    }
