"""The form in which a text that shows its working ends."""

from __future__ import annotations

import pytest

from psynth_jax.data.final_answer import final_answer, with_final_answer


def test_what_is_written_is_read() -> None:
    assert final_answer(with_final_answer("14 + 9 = 23.", "23")) == "23"


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("Answer: 23", "23"),
        ("First I thought Answer: 22\nAnswer: 23", "23"),
        ("So it is. Answer: Ada Halgren \nThat is all.", "Ada Halgren"),
        ("Answer:\n23", "23"),
        (" just 23\n", "just 23"),
        ("The answer is 23.", "The answer is 23."),
        ("Answer:", ""),
        ("", ""),
    ],
)
def test_other_texts(written: str, answer: str) -> None:
    assert final_answer(written) == answer
