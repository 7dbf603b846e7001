"""Evaluation folders with known numbers: what a method gets right follows from a question's number alone.

method           right where number % 10 is      of 300
text             0 1 2 3 4 5                     60%
branches         1 2 3 4 5 6 7                   70%
question         0                               10%
vote             0 1 2 3 4                       50%, no time
wrong-branches   never, and number 0 does not fit
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RIGHT: Mapping[str, Sequence[int]] = {
    "text": range(6),
    "branches": range(1, 8),
    "question": range(1),
    "vote": range(5),
    "wrong-branches": (),
}
TTFT = {"text": 0.8, "branches": 0.2, "question": 0.15, "vote": None, "wrong-branches": 0.25}
TOKENS = {"text": (800, 0, 120), "branches": (60, 740, 110), "question": (60, 0, 90), "vote": (0, 0, 0)}

SETTINGS = {"format": 1, "model": "tiny", "template": {"think": False}, "batch": 4, "temperature": 0.0}


def row(method: str, number: int, **other: Any) -> dict[str, Any]:
    """Return a row as an evaluation writes it."""
    right = number % 10 in RIGHT[method]
    prediction = f"{number}" if right else f"not {number}"
    prefilled, read, wrote = TOKENS.get(method, (60, 740, 100))
    ttft = TTFT[method]
    values: dict[str, Any] = {
        "id": f"q{number}",
        "task": "sums",
        "method": method,
        "prediction": prediction,
        "answers": [f"{number}"],
        "accuracy": float(right),
        "key": prediction,
        "written": f"Method {method} adds up.\nAnswer: {prediction}",
        "batch": 4,
        "ttft_s": ttft,
        "total_s": None if ttft is None else ttft + 2.0,
        "prompt_tokens": prefilled,
        "cached_tokens": read,
        "generated_tokens": wrote,
        "finish_reason": "no_model" if ttft is None else "stop",
    }
    if ttft is not None:
        values["confidence"] = {"likelihood": 0.9, "margin": 0.8}
    return values | other


def does_not_fit(method: str, number: int) -> dict[str, Any]:
    """Return a row of a question that is too long for its method."""
    lacking = dict.fromkeys(("ttft_s", "total_s", "prompt_tokens", "cached_tokens", "generated_tokens"))
    told = {"prediction": "", "key": "", "written": "", "finish_reason": "does_not_fit", "error": "too long by 5 tokens"}
    return row(method, number) | lacking | told


def question(number: int, **other: Any) -> dict[str, Any]:
    """Return a line of questions.jsonl."""
    workers = []
    for place, role in enumerate(("solver", "checker", "solver")):
        text = f"I am worker {place + 1}. The sum of {number} and 0 is {number}. " * (3 + place)
        workers.append({"text": text, "finish_reason": "stop", "tokens": 100 + place, "role": role})
    asked = f"What is the sum of {number} and 0?"
    values = {"task": "sums", "id": f"q{number}", "question": asked, "answers": [f"{number}"]}
    return values | {"workers": workers, "seconds": 3.25} | other


def rows(count: int) -> list[dict[str, Any]]:
    """Return the rows of all methods for so many questions."""
    found = []
    for method in RIGHT:
        for number in range(count):
            found.append(row(method, number))
    found[found.index(row("wrong-branches", 0))] = does_not_fit("wrong-branches", 0)
    return found


def summary(count: int) -> dict[str, Any]:
    """Return a summary with the numbers of the rows, for a count that 10 divides; intervals are 5 points wide each way."""
    methods = {}
    for method, right in RIGHT.items():
        mean = len(right) / 10
        prefilled, read, wrote = TOKENS.get(method, (60, 740, 100))
        difference = mean - 0.6
        ttft = TTFT[method]
        methods[method] = {
            "n": count,
            "accuracy": {"mean": mean, "low": max(mean - 0.05, 0.0), "high": mean + 0.05},
            "does_not_fit": int(method == "wrong-branches"),
            "cut_off": 0,
            "ttft_s": ttft,
            "total_s": None if ttft is None else ttft + 2.0,
            "prompt_tokens": prefilled,
            "cached_tokens": read,
            "generated_tokens": wrote,
            "judge_consistency": {"mean": 0.9, "low": 0.85, "high": 0.95},
            "difference_to_text": {"accuracy": {"value": difference, "low": difference - 0.11, "high": difference + 0.05}},
        }
    curve = []
    for step in range(6):
        point = {"threshold": step / 5, "accepted": 1 - step / 5, "score": 0.6 + 0.02 * step}
        curve.append(point | {"ttft_s": 0.2 + 0.1 * step, "total_s": 2 + step})
    return {
        "task": "sums",
        "questions": count,
        "methods": methods,
        "comparisons": [],
        "main_score": "accuracy",
        "workers": 3,
        "worker_output": {"tokens": 105560, "tokens_per_s": 812.0, "seconds": 130.0},
        "gate": {"measure": "margin", "threshold": 0.6, "score": "accuracy", "curve": curve},
    }


def lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def write_folder(folder: Path, count: int = 300, parts: int = 0) -> Path:
    """Write a finished evaluation, in so many parts; 0 is one file."""
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    (folder / "summary.json").write_text(json.dumps(summary(count)))
    questions = [question(number) for number in range(count)]
    if not parts:
        lines(folder / "rows.jsonl", rows(count))
        lines(folder / "questions.jsonl", questions)
        return folder
    for part in range(parts):
        lines(folder / f"rows.{part + 1}-of-{parts}.jsonl", rows(count)[part::parts])
        lines(folder / f"questions.{part + 1}-of-{parts}.jsonl", questions[part::parts])
    return folder
