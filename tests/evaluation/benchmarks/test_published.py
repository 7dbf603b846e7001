"""The published rule, with the faults that it is known for."""

from __future__ import annotations

import pytest

from psynth_jax.evaluation.benchmarks.published import (
    published_answer,
    published_gold,
    same_integer,
    same_text,
)


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (r"\boxed{18}", "18"),
        (r"\boxed{18.0}", "18.0"),
        (r"\boxed{1,000}", "1"),
        (r"\boxed{\frac{1}{2}}", "1"),
        (r"\boxed{A}", "a"),
        (r"\boxed{\text{A}}", r"\text{a"),
        (r"\boxed{(B)}", "(b)"),
        (r"\boxed{1} \boxed{2 eggs}", "2"),
        ("it is 5, then -6.5", "-6.5"),
        ("the answer is B; 3 others are wrong", "3"),
        ("the answer is B", ""),
        (r"<think>\boxed{1}</think>2", "2"),
        ("<think>1, 2", "2"),
        ("", ""),
    ],
)
def test_answers(written: str, answer: str) -> None:
    assert published_answer(written) == answer


def test_equality() -> None:
    assert published_gold("a\n#### 1,234") == "1" and published_gold("#### -5") == "-5"
    assert [same_text(r"\boxed{18.0}", "18"), same_text(r"\boxed{B}", "B")] == [False, True]
    assert [same_integer(written, "73") for written in ("073", "73.0", "x", "+73")] == [True, False, False, True]
