"""Lines of an evaluation folder: answers of its methods, questions with what the workers wrote.

    rows.jsonl        {"task": "gsm8k", "id": "0", "method": "text", "prediction": "18", ...}
    questions.jsonl   {"task": "gsm8k", "id": "0", "question": "...", "workers": [...], ...}

Where several processes share an evaluation, each writes its own part: rows.1-of-4.jsonl,
questions.1-of-4.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from psynth_jax.errors import InputError
from psynth_jax.reports.json_objects import JsonObject, finite, read_lines

Key: TypeAlias = tuple[str, str]  # task, id

DOES_NOT_FIT = "does_not_fit"
_EXTRAS = ("confidence", "route", "error")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a method answered to a question.

    prediction: what is scored; same_as: what answers that mean the same have in common; written:
    all that the method wrote.  ttft_s, total_s: seconds to the
    first token and to the last one.  extras: other values that a row may have, as texts.  A value
    is None where it was not measured.
    """

    key: Key
    method: str
    prediction: str
    same_as: str
    written: str
    right_answers: tuple[str, ...]
    scores: Mapping[str, float]
    ttft_s: float | None
    total_s: float | None
    prompt_tokens: float | None
    cached_tokens: float | None
    generated_tokens: float | None
    finish_reason: str
    extras: Mapping[str, str]

    @property
    def fits(self) -> bool:
        """Whether the question fitted the model's context window."""
        return self.finish_reason != DOES_NOT_FIT


@dataclasses.dataclass(frozen=True)
class Worker:
    """What a worker wrote; tokens is None for a text that was given."""

    text: str
    role: str
    finish_reason: str
    tokens: float | None


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question.  seconds: how long the workers of its batch wrote, None for given texts."""

    key: Key
    question: str
    right_answers: tuple[str, ...]
    workers: tuple[Worker, ...] = ()
    seconds: float | None = None


def parts(folder: Path, stem: str) -> list[Path]:
    """Return STEM.jsonl and the parts STEM.1-of-4.jsonl of a folder, the whole file last."""
    form = re.compile(rf"{stem}(\.[0-9]+-of-[0-9]+)?\.jsonl")
    try:
        found = [path for path in folder.iterdir() if form.fullmatch(path.name)]
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}") from None
    return sorted(found, key=lambda path: natural(path.name))


def read_answers(paths: Sequence[Path]) -> dict[str, dict[Key, Answer]]:
    """Read rows: method -> key -> answer.  Of several rows for one answer the last counts.

    Raises:
      InputError: a file cannot be read.
      DataError: a line is damaged; the message names file and line.
    """
    found: dict[str, dict[Key, Answer]] = {}
    for path in paths:
        for row in read_lines(path):
            answer = _answer(row)
            found.setdefault(answer.method, {})[answer.key] = answer
    return found


def _answer(row: JsonObject) -> Answer:
    scores = {name: row.share(name) for name in _score_names(row.values)}
    extras = {}
    for name in _EXTRAS:
        value = row.values.get(name)
        if isinstance(value, dict):
            extras[name] = _measures(value)
        elif value is not None:
            extras[name] = _as_text(value)
    prediction = row.text("prediction", "")
    return Answer(
        key=(row.text("task"), row.text("id")),
        method=row.text("method"),
        prediction=prediction,
        same_as=row.text("key", prediction),
        written=row.text("written", ""),
        right_answers=_texts(row, "answers"),
        scores=scores,
        ttft_s=row.number("ttft_s"),
        total_s=row.number("total_s"),
        prompt_tokens=row.number("prompt_tokens"),
        cached_tokens=row.number("cached_tokens"),
        generated_tokens=row.number("generated_tokens"),
        finish_reason=row.text("finish_reason"),
        extras=extras,
    )


def _measures(values: Mapping[str, Any]) -> str:
    """Return values by name, as in "likelihood 0.912, margin 0.8"."""
    shown = []
    for name, value in values.items():
        number = finite(value)
        shown.append(f"{name} {_as_text(value)}" if number is None else f"{name} {number:.3g}")
    return ", ".join(shown)


def _score_names(row: Mapping[str, Any]) -> list[str]:
    """Return the names of a row's scores.

    A benchmark names its scores as it likes.  What tells them from other numbers is their place:
    they are written between "answers" and "key", in earlier versions between "answers" and
    "written".
    """
    names = list(row)
    end = "key" if "key" in row else "written"
    if "answers" not in row or end not in row:
        return []
    return names[names.index("answers") + 1 : names.index(end)]


def read_questions(paths: Sequence[Path]) -> dict[Key, Asked]:
    """Read questions by key; errors as for `read_answers`."""
    found = {}
    for path in paths:
        for line in read_lines(path):
            asked = _asked(line)
            found[asked.key] = asked
    return found


def _asked(line: JsonObject) -> Asked:
    workers = []
    for each in line.objects("workers"):
        worker = Worker(
            text=each.text("text", ""),
            role=each.text("role", ""),
            finish_reason=each.text("finish_reason", ""),
            tokens=each.number("tokens"),
        )
        workers.append(worker)
    return Asked(
        key=(line.text("task"), line.text("id")),
        question=line.text("question"),
        right_answers=_texts(line, "answers"),
        workers=tuple(workers),
        seconds=line.number("seconds"),
    )


def in_order(keys: Iterator[Key]) -> list[Key]:
    """Sort keys as people count: q2 comes before q10."""
    return sorted(keys, key=lambda key: (natural(key[0]), natural(key[1])))


def natural(text: str) -> list[Any]:
    """Return a sort key that compares runs of digits as numbers.

    Texts and numbers alternate in it.  A number is compared by its length without leading zeros,
    then by its digits: an id may have more digits than Python turns into an integer.
    """
    key: list[Any] = []
    for place, piece in enumerate(re.split(r"([0-9]+)", text)):
        if place % 2 == 0:
            key.append(piece)
            continue
        digits = piece.lstrip("0")
        key.append((len(digits), digits))
    return key


def _texts(line: JsonObject, name: str) -> tuple[str, ...]:
    value = line.values.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise line.wrong(name, "a list")
    return tuple(_as_text(each) for each in value)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    number = finite(value)
    if number is not None:
        return f"{number:.6g}"
    return json.dumps(value, ensure_ascii=False)
