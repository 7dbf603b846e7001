"""The questions of an evaluation as one JSON text, for the script of the page.

    {"methods": [{"name": "text", "control": false}, ...], "scores": ["accuracy"], "questions": [
      {"task": "gsm8k", "id": "0", "question": "...", "right": ["18"], "workers": [...],
       "flags": ["text-only"], "answers": {"text": {"right": true, "prediction": "18", ...}}}]}

The text is safe inside of a <script> element: it holds no "<", so that nothing that a model wrote
can end the element.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from psynth_jax.reports.eval_folder import Evaluation
from psynth_jax.reports.eval_lines import Answer, Asked, Worker
from psynth_jax.reports.eval_methods import BRANCHES, CONTROLS, TEXT

# What a reader can filter by: flag -> label.
FILTERS: Mapping[str, str] = {
    "text-only": "text right, branches wrong",
    "branches-only": "branches right, text wrong",
    "all-wrong": "all wrong (controls aside)",
    "differing": "answers differ (controls aside)",
    "does-not-fit": "does not fit",
}

# Inside of a <script> element the HTML parser reads "</script" and "<!--".  Old JavaScript takes
# U+2028 and U+2029 for ends of lines.
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def script_json(value: Any) -> str:
    """Return JSON for the inside of a <script> element.  Raises `ValueError` for NaN."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def question_data(evaluation: Evaluation, longest: int | None = None) -> dict[str, Any]:
    """Return the questions as JSON values.

    longest: characters of a text that are kept; None keeps all.
    """
    methods = []
    for method in evaluation.methods:
        methods.append({"name": method.name, "control": method.name in CONTROLS})
    tasks = list(dict.fromkeys(asked.key[0] for asked in evaluation.questions))
    return {
        "name": evaluation.name,
        "methods": methods,
        "tasks": tasks,
        "scores": evaluation.scores,
        "right": evaluation.right_score,
        "questions": [_question(evaluation, asked, longest) for asked in evaluation.questions],
    }


def _question(evaluation: Evaluation, asked: Asked, longest: int | None) -> dict[str, Any]:
    answers = {}
    for method in evaluation.methods:
        answer = evaluation.answers.get(method.name, {}).get(asked.key)
        if answer is not None:
            answers[method.name] = answer
    task, number = asked.key
    right = [cut(each, longest) for each in asked.right_answers]
    workers = [_worker(worker, longest) for worker in asked.workers]
    found: dict[str, Any] = {
        "task": task,
        "id": number,
        "question": cut(asked.question, longest),
        "right": right,
        "workers": workers,
        "seconds": asked.seconds,
        "flags": flags(answers, evaluation.right_score),
    }
    shown = {}
    for name, answer in answers.items():
        shown[name] = _answer(answer, evaluation, longest)
    return found | {"answers": shown}


def _worker(worker: Worker, longest: int | None) -> dict[str, Any]:
    return {
        "text": cut(worker.text, longest),
        "role": worker.role,
        "finish": worker.finish_reason,
        "tokens": worker.tokens,
    }


def _answer(answer: Answer, evaluation: Evaluation, longest: int | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "right": is_right(answer, evaluation.right_score),
        "scores": [answer.scores.get(name) for name in evaluation.scores],
        "prediction": cut(answer.prediction, longest),
        "written": cut(answer.written, longest),
        "ttft": answer.ttft_s,
        "total": answer.total_s,
        "prefilled": answer.prompt_tokens,
        "read": answer.cached_tokens,
        "wrote": answer.generated_tokens,
        "finish": answer.finish_reason,
        **answer.extras,
    }
    return {name: value for name, value in values.items() if value is not None}


def is_right(answer: Answer, score: str | None) -> bool:
    """Whether an answer is wholly right by a score."""
    return score is not None and answer.scores.get(score, 0.0) >= 1


def flags(answers: Mapping[str, Answer], score: str | None) -> list[str]:
    """Return the filters that a question belongs to, given its answers by method."""
    found = []
    text, branches = answers.get(TEXT), answers.get(BRANCHES)
    if text is not None and branches is not None:
        by_text, by_branches = is_right(text, score), is_right(branches, score)
        if by_text and not by_branches:
            found.append("text-only")
        if by_branches and not by_text:
            found.append("branches-only")
    own = _without_controls(answers)
    if own and not any(is_right(answer, score) for answer in own):
        found.append("all-wrong")
    if len({_folded(answer.same_as) for answer in own}) > 1:
        found.append("differing")
    if not all(answer.fits for answer in answers.values()):
        found.append("does-not-fit")
    return found


def _without_controls(answers: Mapping[str, Answer]) -> list[Answer]:
    """Return the answers of methods that are no controls; of controls alone, all of them."""
    own = [answer for name, answer in answers.items() if name not in CONTROLS]
    return own or list(answers.values())


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def cut(text: str, longest: int | None) -> str:
    """Return the first characters of a text; where some are left out, say how many."""
    if longest is None or len(text) <= longest:
        return text
    return f"{text[:longest]}\n[{len(text) - longest:,} more characters]"


def counts(questions: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count the questions of each filter."""
    found = dict.fromkeys(FILTERS, 0)
    for question in questions:
        for flag in question["flags"]:
            found[flag] += 1
    return found
