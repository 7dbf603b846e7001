"""Letters that a text calls its answer, in order, and what a letter stands beside."""

from __future__ import annotations

import pytest

from psynth_jax.evaluation.benchmarks.letter_phrases import (
    has_another,
    is_letter,
    letters_called_right,
)


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("Option C is correct. No: the answer is D.", ["C", "D"]),
        ("The answer is A or B. So C is correct.", ["", "C"]),
        ("The answer is not A but B, and I choose b.", ["B", "B"]),
        ("Vitamin C is correct. A, B is correct.", []),
        ("(B) is the best choice; Answer: E", ["B", "E"]),
        ("", []),
    ],
)
def test_letters_in_their_order(text: str, letters: list[str]) -> None:
    assert letters_called_right(text) == letters


@pytest.mark.parametrize(
    ("text", "named", "is_one"),
    [
        ("A", False, True),
        ("a", True, True),
        ("a", False, False),
        ("b", False, True),
        ("b is", True, False),
        ("b)", False, True),
        ("A patient", True, False),
        ("A because", False, True),
        ("B-cell", False, False),
        ("B is wrong", False, False),
        ("C. difficile", False, False),
        ("K", False, False),
    ],
)
def test_what_is_a_letter(text: str, named: bool, is_one: bool) -> None:
    assert is_letter(text, 0, named) == is_one


@pytest.mark.parametrize(
    ("text", "is_there"),
    [
        ("A or B", True),
        ("A, B and C", True),
        ("A/B", True),
        ("A) (B)", True),
        ("A", False),
        ("A, not B", False),
        ("A, B is wrong", False),
        ("A. B is wrong", False),
        ("B and a fever", False),
    ],
)
def test_a_second_letter(text: str, is_there: bool) -> None:
    assert has_another(text, 0) == is_there
