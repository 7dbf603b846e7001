"""Our half of what tests/extern/witness compares with lm-eval."""

from __future__ import annotations

import pytest

from psynth_jax.evaluation.benchmarks.gsm8k import GSM8K
from tests.evaluation.benchmarks.witnessed import AGREE, DIFFER

CASES = [*AGREE, *((gold, text, right) for gold, text, right, _ in DIFFER)]


@pytest.mark.parametrize(("gold", "text", "right"), CASES)
def test_answers_are_scored_as_the_table_says(gold: str, text: str, right: bool) -> None:
    task = GSM8K("rows.jsonl")
    question = task.question("rows.jsonl:1", {"question": "Why?", "answer": f"#### {gold}"}, 0)
    assert task.judged(text, question)[1]["accuracy"] == right
