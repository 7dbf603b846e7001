"""A gate that is chosen from rows: which half counts, what its curve says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psynth_jax.errors import InputError
from psynth_jax.evaluation.calibration import calibrated, write_gate
from psynth_jax.synthesis.gate import Gate

QUESTIONS = 200


def row(number: int, method: str) -> dict[str, Any]:
    """Caches are right where they are sure (above a half), and quick; texts are right about every other, and slow."""
    sure = number / QUESTIONS
    right = float(sure > 0.5) if method == "branches" else float(number % 2)
    return {
        "task": "t",
        "id": f"q{number}",
        "accuracy": right,
        "finish_reason": "stop",
        "ttft_s": 0.1 if method == "branches" else 1.0,
        "total_s": 0.5 if method == "branches" else 2.0,
        "confidence": {"likelihood": sure, "margin": 0.5},
    }


def rows(method: str) -> list[dict[str, Any]]:
    return [row(number, method) for number in range(QUESTIONS)]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return calibrated(rows("branches"), rows("text"), "accuracy")


def test_the_threshold_is_where_caches_become_better(found: dict[str, Any]) -> None:
    assert found["measure"] == "likelihood"
    assert found["threshold"] == pytest.approx(0.5, abs=0.1)
    assert found["calibrated_on"] + found["held_out"] == QUESTIONS
    assert min(found["calibrated_on"], found["held_out"]) > QUESTIONS / 4


def test_the_curve_runs_from_caches_to_texts(found: dict[str, Any]) -> None:
    first, last = found["curve"][0], found["curve"][-1]
    assert (first["threshold"], first["accepted"], first["ttft_s"], first["total_s"]) == (0.0, 1.0, 0.1, 0.5)
    assert (last["threshold"], last["accepted"], last["ttft_s"], last["total_s"]) == (1.0, 0.0, 1.0, 2.0)
    shares = [point["accepted"] for point in found["curve"]]
    assert shares == sorted(shares, reverse=True)
    assert found["chosen"]["score"] > max(first["score"], last["score"])


def test_doubted_answers_take_the_time_of_both(found: dict[str, Any]) -> None:
    most = [point for point in found["curve"] if 0 < point["accepted"] < 0.4]
    assert most
    for point in most:
        assert (point["ttft_s"], point["total_s"]) == (0.5 + 1.0, 0.5 + 2.0)


def test_what_does_not_fit_is_left_out() -> None:
    texts = rows("text")
    texts[3] |= {"finish_reason": "does_not_fit", "ttft_s": None, "total_s": None}
    found = calibrated(rows("branches"), texts, "accuracy")
    assert found["calibrated_on"] + found["held_out"] == QUESTIONS - 1


def test_a_gate_is_written_and_read(found: dict[str, Any], tmp_path: Path) -> None:
    path = write_gate(tmp_path, found)
    assert Gate.load(path) == Gate(found["threshold"], found["measure"])


def test_of_equal_scores_the_gate_that_asks_the_texts_least() -> None:
    """Margins would do as well, at a lower number, and with more doubted questions."""

    def with_margins(method: str) -> list[dict[str, Any]]:
        found = rows(method)
        for number, each in enumerate(found):
            wrong = method == "branches" and number < 40
            each["accuracy"] = float(not wrong)
            # Likelihoods tell the wrong answers from the others; margins doubt as many right ones.
            each["confidence"] = {"likelihood": 0.9, "margin": 0.3}
            if number < 80:
                each["confidence"]["margin"] = 0.01
            if number < 40:
                each["confidence"]["likelihood"] = 0.2
        return found

    found = calibrated(with_margins("branches"), with_margins("text"), "accuracy")
    assert (found["measure"], found["threshold"]) == ("likelihood", 0.2)
    assert found["chosen"]["score"] == 1.0 and found["chosen"]["accepted"] > 0.7


def test_too_few_questions() -> None:
    with pytest.raises(InputError, match="takes more questions"):
        calibrated(rows("branches")[:1], rows("text")[:1], "accuracy")


def test_rows_of_an_earlier_version() -> None:
    earlier = rows("branches")
    del earlier[0]["confidence"]
    with pytest.raises(InputError, match="an earlier version wrote them"):
        calibrated(earlier, rows("text"), "accuracy")
