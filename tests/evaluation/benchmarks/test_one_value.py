"""Inequalities, and values that stand side by side."""

from __future__ import annotations

import pytest

from psynth_jax.evaluation.benchmarks.one_value import has_values_side_by_side, is_inequality


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("> 18", True),
        ("x < 18", True),
        ("<= 18", True),
        ("!= 18", True),
        ("≠ 18", True),
        (r"\le18", True),
        (r"\geqslant 18", True),
        (r"\neq 18", True),
        (r"\lt 18", True),
        (r"\left(18\right)", False),
        ("x = 18", False),
        ("3!", False),
        ("18", False),
    ],
)
def test_inequalities(text: str, is_one: bool) -> None:
    assert is_inequality(text) == is_one


@pytest.mark.parametrize(
    ("text", "are_there"),
    [
        ("18 20", True),
        ("18. 20", True),
        ("18 .5", True),
        ("2(3)", True),
        ("2 (3)", True),
        ("(18)(1)", True),
        ("(18) 1", True),
        ("(18).5", True),
        ("{2}{3}", True),
        ("2^{3}4", True),
        (r"2 \cdot (3)", False),
        ("2 - (3)", False),
        (r"2\sqrt{3}", False),
        (r"\sqrt[3]{8}", False),
        (r"2\sqrt[3]8", False),
        (r"\frac{1}{2}", False),
        (r"\frac {1}{2}", False),
        (r"\frac{1}{2}\pi", False),
        ("{18}", False),
        ("(18)", False),
        ("", False),
    ],
)
def test_values_side_by_side(text: str, are_there: bool) -> None:
    assert has_values_side_by_side(text) == are_there
