"""An evaluation: every question of a task, answered by every method, scored, kept row by row, and summed up.

    Plan (checked before a model is there) -> live workers, where the task has them -> batches of questions of similar size
    -> method -> scores -> row -> summary

What stands in the folder already is not asked again.  Batches are cut from all questions, whatever is done already, so that
a run that was interrupted measures what an undisturbed one does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from psynth_jax.errors import ContextLengthError
from psynth_jax.evaluation import intervals
from psynth_jax.evaluation.calibration import calibrated, check_halves, write_gate
from psynth_jax.evaluation.lines import alone
from psynth_jax.evaluation.live import Workers
from psynth_jax.evaluation.methods import Method, Synthesizers, in_order
from psynth_jax.evaluation.plan import Plan
from psynth_jax.evaluation.rows import DOES_NOT_FIT, MEASURED, NO_MODEL, Row, RowFile
from psynth_jax.evaluation.summary import summarise
from psynth_jax.evaluation.tasks import Question, Task, questions_digest
from psynth_jax.evaluation.wrong_branches import with_wrong_branches
from psynth_jax.synthesis.pipeline import ParallelSynthesis, SynthesisResult

__all__ = ["Plan", "evaluate"]

OnRow = Callable[[Row], None]
OnWritten = Callable[[str, int], None]


def evaluate(
    plan: Plan,
    synthesizers: Synthesizers,
    into: str | Path,
    on_row: OnRow | None = None,
    on_written: OnWritten = lambda kind, count: None,
    *,
    calibrate: bool = False,
) -> dict[str, Any]:
    """Run what a plan asks for and is not in the folder yet; write and return the summary.

    Args:
      into: the folder; see rows.py and live.py.
      on_row: called with each row as it is written, and with those that were there.
      calibrate: choose a gate and write it to the folder, once `text` and `branches` have answered all questions.
      on_written: called with "questions" or "others" and the number of questions about which workers have written.

    Raises:
      InputError: the folder holds rows that were made otherwise, or a method's adapter is not given.
      DataError: a row in the folder is damaged, or a question finds no wrong branches.
      MemoryLimitError: a batch is too large for the device.
    """
    if calibrate:
        check_halves(plan.questions)
    ready = [(method, synthesizers.of(method)) for method in plan.methods]
    identity = synthesizers.base.model.identity
    same = {"model": identity.matches}
    file = RowFile(into, _settings(plan, synthesizers), score_names(plan), same, plan.shard)
    workers = Workers(into, "questions", plan.shard, private=plan.task.private)
    asked = _with_branches(plan, synthesizers.base, workers, into, on_written)
    options = {"max_new_tokens": plan.max_new_tokens, "temperature": plan.temperature, "seed": plan.seed}
    with file.open():
        for method, synth in ready:
            for batch in plan.batches(asked(method)):
                done = [file.rows.get((method.name, question.task, question.id)) for question in batch]
                left = [question for question, row in zip(batch, done, strict=True) if row is None]
                for row in done:
                    if row is not None:
                        _tell(on_row, row)
                for row in _rows(plan.task, method, synth, left, options):
                    file.append(row)
                    _tell(on_row, row)
    with alone(file.folder):
        file.read()  # what other processes have written meanwhile
        summary = summary_of(plan, file)
        if plan.workers is not None:
            summary["worker_output"] = Workers(into, "questions", plan.shard).summary()
        file.write_summary(summary)
        if calibrate:
            _calibrate(plan, file, summary)
    return summary


def _calibrate(plan: Plan, file: RowFile, summary: dict[str, Any]) -> None:
    """Choose a gate and note it in the summary, once both routes have answered all questions."""
    rows = complete_rows(plan, file)
    if not {"text", "branches"} <= set(rows):
        return
    chosen_for = {"model": file.settings["model"], "adapter": file.settings["adapter"]}
    found = calibrated(rows["branches"], rows["text"], plan.task.main_score)
    summary["gate"] = chosen_for | {"data": file.settings["data"]} | found
    write_gate(file.folder, summary["gate"])
    file.write_summary(summary)


def summary_of(plan: Plan, file: RowFile) -> dict[str, Any]:
    """Sum up the rows of every method that has answered all questions, in this process or another, now or before."""
    rows = complete_rows(plan, file)
    facts = {
        "task": plan.task.name,
        "questions": len(plan.questions),
        "main_score": plan.task.main_score,
        "scores": score_names(plan),
    }
    facts |= file.settings
    drawn = {"kind": "percentile bootstrap", "level": intervals.LEVEL, "resamples": intervals.RESAMPLES}
    return facts | {"seed": plan.seed, "interval": drawn} | summarise(rows, score_names(plan), plan.seed)


def _with_branches(
    plan: Plan, base: ParallelSynthesis, workers: Workers, into: str | Path, on_written: OnWritten
) -> Callable[[Method], Sequence[Question]]:
    """Let live workers write what is missing; return how to get the questions as a method gets them."""
    own = plan.own(plan.questions)
    if plan.workers is None:
        workers.note(own)
        return plan.asked
    batches = list(plan.batches(own))
    live, longest = plan.workers, plan.task.max_new_tokens
    workers.write(base, batches, live, longest, functools.partial(on_written, "questions"))
    others = workers
    if any(method.name == "self" for method in plan.methods):
        others = Workers(into, "others", plan.shard, private=plan.task.private)
        others.write(base, batches, live, longest, functools.partial(on_written, "others"))

    def asked(method: Method) -> Sequence[Question]:
        if method.name == "self":
            return others.complete(own, live)
        if method.of_another:
            return with_wrong_branches(workers.complete(own, live))
        return workers.complete(own, live)

    return asked


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
        assert method.chosen is not None
        for question in questions:
            yield row_of(task, method.name, question, method.chosen(task, question), 1) | WITHOUT_MODEL
        return
    try:
        results = method.answer(synth, questions, options)
    except ContextLengthError as error:
        if len(questions) == 1:
            row = row_of(task, method.name, questions[0], "", 1)
            yield row | _nothing(task, questions[0], error)
            return
        half = len(questions) // 2
        yield from _rows(task, method, synth, questions[:half], options)
        yield from _rows(task, method, synth, questions[half:], options)
        return
    for question, result in zip(questions, results, strict=True):
        yield row_of(task, method.name, question, result.text, len(questions)) | _measured(result)


def row_of(task: Task, method: str, question: Question, written: str, batch: int) -> Row:
    """Score what was written.  `key` is what it has in common with other texts that give the same answer."""
    prediction, scores = task.judged(written, question)
    return {
        "id": question.id,
        "task": question.task,
        "method": method,
        "prediction": prediction,
        "answers": list(question.answers),
        **scores,
        "key": task.vote_key(written, question),
        "written": written,
        "batch": batch,
    }


def _measured(result: SynthesisResult) -> Row:
    row: Row = {
        "ttft_s": result.ttft_s,
        "total_s": result.total_s,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "generated_tokens": len(result.token_ids),
        "finish_reason": result.finish_reason,
    }
    if result.confidence is not None:
        row["confidence"] = dataclasses.asdict(result.confidence)
    if result.route is not None:
        row["route"] = result.route
    return row


# An answer that no model gave has no time, not one of 0 seconds, which would pass for a very fast one.
WITHOUT_MODEL: Row = {
    "ttft_s": None,
    "total_s": None,
    "prompt_tokens": 0,
    "cached_tokens": 0,
    "generated_tokens": 0,
    "finish_reason": NO_MODEL,
}


def _nothing(task: Task, question: Question, error: ContextLengthError) -> Row:
    nothing = dict.fromkeys(MEASURED)
    zeros = dict.fromkeys(task.judged("", question)[1], 0.0)
    return {**zeros, **nothing, "finish_reason": DOES_NOT_FIT, "error": str(error)}


def complete_rows(plan: Plan, file: RowFile) -> dict[str, list[Row]]:
    """Return the rows of every method that has answered all questions of the plan."""
    names = {name for name, _, _ in file.rows}
    found = {}
    for name in sorted(names, key=in_order):
        rows = [file.rows.get((name, question.task, question.id)) for question in plan.questions]
        if None not in rows:
            found[name] = [row for row in rows if row is not None]
    return found


def score_names(plan: Plan) -> list[str]:
    """Return the names of the scores that every row has."""
    return list(plan.task.judged("", plan.questions[0])[1])


def _settings(plan: Plan, synthesizers: Synthesizers) -> dict[str, Any]:
    """Return what rows must share to be compared with each other."""
    model, device = synthesizers.base.model, jax.devices()[0]
    used = {method.weights: synthesizers.of(method) for method in plan.methods}
    draws = plan.temperature > 0
    if plan.workers is None:  # live workers have a seed of their own
        draws = draws or any(method.draws for method in plan.methods)
    digests = {name: synth.adapter.digest for name, synth in used.items() if name != "base"}
    gate = used["gated"].gate if "gated" in used else None
    settings = {
        "format": 1,
        "data": questions_digest(plan.everything),
        **plan.task.settings(),
        "model": model.fingerprint,
        "template": dict(synthesizers.base.template),
        "dtype": model.decoder.dtype.name,
        "adapter": digests.get("adapter", digests.get("gated")),
        "text_adapter": digests.get("text_adapter"),
        "max_new_tokens": plan.max_new_tokens,
        "temperature": plan.temperature,
        "sampling_seed": plan.seed if draws else None,
        "batch": plan.batch,
        "device": device.device_kind,
        "mesh": {} if model.mesh is None else dict(model.mesh.shape),
        "gate": None if gate is None else dataclasses.asdict(gate),
    }
    if plan.workers is not None:
        settings |= plan.workers.settings(plan.task.max_new_tokens)
    return settings
