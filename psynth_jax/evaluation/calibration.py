"""A gate's threshold, chosen on one half of the questions, and what it does to the other half.

    rows of `branches` (with their confidence) and of `text` -> threshold -> share accepted, score, times

No model runs again: an accepted question costs what `branches` took, a doubted one that and `text` behind it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psynth_jax.errors import InputError
from psynth_jax.evaluation.rows import DOES_NOT_FIT, Row
from psynth_jax.evaluation.tasks import Question
from psynth_jax.files import write_text
from psynth_jax.synthesis.gate import MEASURES, Gate, Measure
from psynth_jax.synthesis.result import Confidence

GATE = "gate.json"
POINTS = 20  # of the curve, besides both ends


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question that both routes have answered: scores, and seconds to the first token and to the last."""

    confidence: Confidence
    branches: Row
    text: Row


@dataclasses.dataclass(frozen=True)
class Point:
    """A threshold, and what comes of it: the share of answers from caches, the mean score, median seconds."""

    threshold: float
    accepted: float
    score: float
    ttft_s: float
    total_s: float


def calibrated(branches: Sequence[Row], text: Sequence[Row], score: str) -> dict[str, Any]:
    """Choose measure and threshold on one half of the questions; return them, with the curve on the other half.

    Args:
      branches, text: rows of the same questions in the same order.
      score: name of the score that counts.

    Returns:
      "measure", "threshold", "score", "calibrated_on", "held_out" (numbers of questions), "chosen" (the point of the
      threshold on the other half), and "curve" (points there).

    The half of a question depends on its id alone.  Where scores are equal, the gate is chosen that takes most answers from
    caches.  Raises `InputError` where a half has no question that both routes have answered.
    """
    halves: tuple[list[Pair], list[Pair]] = ([], [])
    for one, other in zip(branches, text, strict=True):
        if DOES_NOT_FIT in (one["finish_reason"], other["finish_reason"]):
            continue
        if "confidence" not in one:
            raise InputError("the rows of branches have no confidence: an earlier version wrote them; choose another folder")
        halves[_half(one["task"], one["id"])].append(Pair(Confidence(**one["confidence"]), one, other))
    known, held_out = halves
    if not known or not held_out:
        raise InputError("to calibrate a gate takes more questions that both text and branches could answer")
    measure: Measure = MEASURES[0]
    best = _point(known, Gate(0.0, measure), score)
    for tried in MEASURES:
        for each in _thresholds(known, tried):
            reached = _point(known, Gate(each, tried), score)
            if (reached.score, reached.accepted) > (best.score, best.accepted):
                measure, best = tried, reached
    threshold = best.threshold
    curve = []
    for each in _thresholds(held_out, measure):
        curve.append(dataclasses.asdict(_point(held_out, Gate(each, measure), score)))
    return {
        "measure": measure,
        "threshold": threshold,
        "score": score,
        "calibrated_on": len(known),
        "held_out": len(held_out),
        "chosen": dataclasses.asdict(_point(held_out, Gate(threshold, measure), score)),
        "curve": curve,
    }


def write_gate(folder: str | Path, found: Mapping[str, Any]) -> Path:
    """Write what `Gate.load` reads into a folder.  Raises `InputError` when it cannot be written."""
    path = Path(folder) / GATE
    try:
        write_text(path, json.dumps(found, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def check_halves(questions: Sequence[Question]) -> None:
    """Raise `InputError` for questions that are all in one half."""
    if len({_half(question.task, question.id) for question in questions}) < 2:
        raise InputError(f"to calibrate a gate takes more questions than {len(questions)}")


def _half(task: str, identifier: str) -> int:
    name = f"{task} {identifier}"
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[0] % 2


def _thresholds(pairs: Sequence[Pair], measure: Measure) -> list[float]:
    """Return 0, confidences that were met, and 1."""
    met = sorted({getattr(pair.confidence, measure) for pair in pairs})
    step = max(len(met) // POINTS, 1)
    inner = [value for value in met[::step] if 0 < value < 1]
    return [0.0, *inner, 1.0]


def _point(pairs: Sequence[Pair], gate: Gate, score: str) -> Point:
    scores, first, last, accepted = [], [], [], 0
    for pair in pairs:
        wait = pair.branches["total_s"]
        if gate.accepts(pair.confidence):
            accepted += 1
            scores.append(pair.branches[score])
            # An answer that is judged is shown when it is complete.
            first.append(wait if gate.judges else pair.branches["ttft_s"])
            last.append(wait)
            continue
        behind = wait if gate.judges else 0.0
        scores.append(pair.text[score])
        first.append(behind + pair.text["ttft_s"])
        last.append(behind + pair.text["total_s"])
    share = accepted / len(pairs)
    mean = statistics.fmean(scores)
    return Point(gate.threshold, share, mean, statistics.median(first), statistics.median(last))
