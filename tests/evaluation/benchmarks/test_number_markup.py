"""What is left of a number when currency, unit, LaTeX and separators are taken away."""

from __future__ import annotations

import pytest

from psynth_jax.evaluation.benchmarks.number_markup import cleaned, western, without_separators


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        (r"\$1{,}234\text{ dollars}", "1234"),
        ("a = b = 18", "18"),
        ("18 = x", "18"),
        ("x = 3, y = 5", "x = 3, y = 5"),
        ("<= 18", "<= 18"),
        (r"18^{\text{th}}", "18"),
        (r"60^\circ", "60"),
        ("60 °F.", "60"),
        (r"\mathsf{18}", "18"),
        (r"\text{Rs. }18", "18"),
        (r"R\$ 18", "18"),
        ("1 1/2", "(1+1/2)"),
        ("1 100/200", "(1+100/200)"),
        (r"-1\frac{1}{2}", "-(1+1/2)"),
        (r"50\%", "50"),
        (r"12½\%", "(12+1/2)"),
        ("1 3/2", "1 3/2"),
        ("1 000/3", "1 000/3"),
        ("2^{1 1/2}", "2^{1 1/2}"),
        ("at most 18", "at most 18"),
        ("exactly 18", "18"),
        ("18 " * 500, ("18 " * 500).strip()),
    ],
)
def test_cleaned(answer: str, left: str) -> None:
    assert cleaned(answer) == left


@pytest.mark.parametrize(
    ("text", "ascii_text"),
    [
        ("１８", "18"),
        ("٣", "3"),
        ("−7", "-7"),
        ("1½", "1 1/2"),
        ("3⁄4", "3/4"),
        ("10²", "10²"),
        ("é", "é"),
    ],
)
def test_western(text: str, ascii_text: str) -> None:
    assert western(text) == ascii_text


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("1 234 and 5 678 901", "1234 and 5678901"),
        ("1\u2009234", "1234"),
        (r"1 \, 234", "1234"),
        ("12 34", "12 34"),
        ("1234 567", "1234 567"),
        ("1\n234", "1\n234"),
        ("1.5 234", "1.5 234"),
        ("3 100-dollar bills", "3 100-dollar bills"),
    ],
)
def test_separators(text: str, joined: str) -> None:
    assert without_separators(text) == joined
