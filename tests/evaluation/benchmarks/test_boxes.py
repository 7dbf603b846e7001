"""Boxes with braces inside, several of them, and boxes that are never closed."""

from __future__ import annotations

import pytest

from psynth_jax.evaluation.benchmarks.boxes import boxes, last_box
from tests.growth import assert_linear


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{18}", ["18"]),
        (r"\boxed {18}", ["18"]),
        (r"\boxed{\frac{1}{2}} or \boxed{ 7 }", [r"\frac{1}{2}", "7"]),
        (r"\boxed{\boxed{3}}", [r"\boxed{3}", "3"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{a\}b}", [r"a\}b"]),
        (r"{ \boxed{7} } }", ["7"]),
        (r"\boxed{7", []),
        (r"\boxed{\frac{1}{2}", []),
        (r"\boxed{}", [""]),
        (r"boxed{7} \fbox{7}", []),
        ("", []),
    ],
)
def test_boxes(text: str, found: list[str]) -> None:
    assert boxes(text) == found
    assert last_box(text) == (found[-1] if found else None)


def test_work_grows_with_the_open_boxes_alone() -> None:
    def work(count: int) -> None:
        assert boxes("\\boxed{" * count + "7}") == ["7"]

    assert_linear(work, 5_000)
