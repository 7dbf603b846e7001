"""The folder of an evaluation, read for a report.

    DIR/settings.json     what was set; tells an evaluation from other folders
    DIR/summary.json      the numbers of the methods; absent while the evaluation runs
    DIR/rows*.jsonl       an answer a line
    DIR/questions*.jsonl  a question a line, with what its workers wrote; absent in older folders

A folder may be read while it is written: nothing in it is changed, and a torn last line is left
out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from psynth_jax.errors import InputError
from psynth_jax.reports.eval_lines import (
    Answer,
    Asked,
    Key,
    in_order,
    parts,
    read_answers,
    read_questions,
)
from psynth_jax.reports.eval_methods import main_score, ordered, right_score
from psynth_jax.reports.eval_summary import (
    Gate,
    MethodNumbers,
    count_answers,
    read_by_task,
    read_gate,
    read_methods,
)
from psynth_jax.reports.json_objects import Interval, JsonObject, read_object
from psynth_jax.storage.paths import is_bucket

Answers: TypeAlias = Mapping[str, Mapping[Key, Answer]]  # by method and question

SETTINGS, SUMMARY = "settings.json", "summary.json"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What lies in a folder.

    methods: in the order of the report.  answers: by method and question; questions: all that are
    known, in order.  by_task: scores by task and method, where there are several tasks.  batch:
    questions that were answered at once.  workers_tokens_per_s, workers_seconds: how fast the
    workers wrote, and for how long.  running: whether no method has answered all questions yet.
    told_score: the main score by the summary, "" in earlier ones.
    """

    name: str
    task: str
    settings: Mapping[str, Any]
    methods: tuple[MethodNumbers, ...]
    told_score: str
    answers: Answers
    questions: tuple[Asked, ...]
    by_task: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    batch: float | None
    gate: Gate | None
    workers_tokens_per_s: float | None
    workers_seconds: float | None
    running: bool

    @property
    def scores(self) -> list[str]:
        """The names of all scores, as the methods have them."""
        names: dict[str, None] = {}
        for method in self.methods:
            names |= dict.fromkeys(method.scores)
        return list(names)

    @property
    def main_score(self) -> str | None:
        """The score that figures show."""
        if self.told_score in self.scores:
            return self.told_score
        return main_score(self.scores)

    @property
    def right_score(self) -> str | None:
        """The score that says whether an answer is right."""
        return right_score(self.scores)


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read the folder of an evaluation, finished or not.

    Raises:
      InputError: it is no such folder, holds no answers yet, or a file cannot be read.
      DataError: a file is damaged; the message names the file and the line.
    """
    place = _checked(folder)
    settings = read_object(place / SETTINGS)
    answers = read_answers(parts(place, "rows"))
    summary = read_object(place / SUMMARY) if (place / SUMMARY).exists() else None
    if summary is None and not answers:
        raise InputError(f"{folder} holds no answers yet: it has neither {SUMMARY} nor rows.jsonl")
    asked = read_questions(parts(place, "questions"))
    questions = _questions(asked, answers)
    facts = summary or JsonObject({}, str(place / SUMMARY))
    workers = _workers(facts)
    methods = _methods(summary, answers)
    return Evaluation(
        name=place.resolve().name,
        task=_task(facts, questions),
        settings=settings.values,
        methods=methods,
        told_score=facts.text("main_score", ""),
        answers=answers,
        questions=questions,
        by_task=read_by_task(facts),
        batch=settings.number("batch"),
        gate=read_gate(facts),
        workers_tokens_per_s=workers.number("tokens_per_s"),
        workers_seconds=workers.number("seconds"),
        running=not any(method.finished for method in methods),
    )


def _checked(folder: str | Path) -> Path:
    if is_bucket(folder):
        raise InputError(f"{folder} is in a bucket; copy the folder to a disk first")
    place = Path(folder)
    try:
        exists, is_folder = place.exists(), place.is_dir()
        has_settings = (place / SETTINGS).exists()
    except (OSError, ValueError) as error:  # no permission; a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {str(folder)!r}: {reason}") from None
    if not exists:
        raise InputError(f"there is no folder {folder}; give the one that psynth eval wrote into")
    if not is_folder:
        raise InputError(f"{folder} is not a folder; give the one that psynth eval wrote into")
    if not has_settings:
        raise InputError(f"{folder} is not the folder of an evaluation: it has no {SETTINGS}")
    return place


def _workers(facts: JsonObject) -> JsonObject:
    """Return what the workers wrote; "workers" of a summary may also be how many there are."""
    for name in ("worker_output", "workers"):
        if isinstance(facts.values.get(name), dict):
            return JsonObject(facts.values[name], f"{facts.where}: {name}")
    return JsonObject({}, facts.where)


def _methods(summary: JsonObject | None, answers: Answers) -> tuple[MethodNumbers, ...]:
    """Return the numbers of the summary; count rows for methods that it does not have, or not all of."""
    found = {} if summary is None else read_methods(summary)
    for name, own in answers.items():
        if name not in found or len(own) > found[name].answers:
            found[name] = count_answers(name, list(own.values()))
    return tuple(found[name] for name in ordered(found))


def _questions(asked: Mapping[Key, Asked], answers: Answers) -> tuple[Asked, ...]:
    """Return all questions in order; rows know the right answers of a question, and no more."""
    found = dict(asked)
    for answer in _every(answers):
        if answer.key not in found:
            found[answer.key] = Asked(answer.key, "", answer.right_answers)
    return tuple(found[key] for key in in_order(iter(found)))


def _every(answers: Answers) -> Iterator[Answer]:
    for own in answers.values():
        yield from own.values()


def _task(facts: JsonObject, questions: tuple[Asked, ...]) -> str:
    """Return the task's name: as the summary says, else as the questions say."""
    told = facts.text("task", "")
    tasks = list(dict.fromkeys(asked.key[0] for asked in questions))
    return told or ", ".join(tasks[:3])
