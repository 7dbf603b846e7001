"""Word problems with the attempts of workers."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.data.final_answer import final_answer
from psynth_jax.data.sources.attempts import solution
from psynth_jax.data.synthetic.world import split_of
from psynth_jax.evaluation.scoring import exact_match
from tests.data.sources.converting import convert, reason, record

ROW: dict[str, Any] = {
    "question": "Ada has 3 boxes of 1,000 nails each. How many nails does she have?",
    "answer": "She has 3*1000 = <<3*1000=3000>>3000 nails.\n\nThat is all of them.\n#### 3,000",
    "attempts": ["3 + 1000 = 1003 nails.", " 3000 ", ""],
    "made": {"model": "tiny"},
}
GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k" / "train.jsonl.gz"


def test_a_row() -> None:
    found = record("attempts", ROW)
    assert (found.task, found.query) == ("attempts", ROW["question"])
    assert [branch.text for branch in found.branches] == ["3 + 1000 = 1003 nails.", "3000"]
    assert found.target == "She has 3*1000 = 3000 nails.\nThat is all of them.\nAnswer: 3000"
    assert found.answers == ("3000",)
    assert exact_match(final_answer(found.target), found.answers) == 1.0


def test_a_bare_number_is_an_answer() -> None:
    assert record("attempts", ROW | {"answer": "#### 5"}).target == "Answer: 5"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"question": " "}, "no question"),
        ({"answer": "It is 5."}, "the answer does not end in #### and a number"),
        ({"answer": "It is 5. ####"}, "the answer does not end in #### and a number"),
        ({"attempts": ["", None]}, "no attempts"),
        ({"attempts": None}, "no attempts"),
        ({"attempts": 3}, "attempts is no list"),
    ],
)
def test_rows_that_give_none(changed: dict[str, Any], why: str) -> None:
    assert reason("attempts", ROW | changed) == why


def test_each_question_is_in_one_split() -> None:
    rows = [ROW | {"question": f"How many are {number} and 1?"} for number in range(60)]
    found: dict[str, set[str]] = {}
    for split in ("train", "validation", "test", "all"):
        items = convert("attempts", *rows, split=split)
        found[split] = {item.query for item in items if hasattr(item, "query")}
    assert min(map(len, found.values())) > 0
    assert sum(map(len, found.values())) == 2 * len(found["all"]) == 120
    assert all(split_of(query) == split for split in ("train", "test") for query in found[split])
    assert found["train"] | found["validation"] | found["test"] == found["all"]


def test_answers_of_gsm8k() -> None:
    if not GSM8K.is_file():
        pytest.skip("there is no gsm8k/train.jsonl.gz next to the checkout")
    with gzip.open(GSM8K, "rt", encoding="utf-8") as lines:
        for line in itertools.islice(lines, 500):
            answer = json.loads(line)["answer"]
            reasoning, number = solution(answer)
            assert "<<" not in reasoning and "####" not in reasoning and reasoning
            assert int(number) == int(answer.split("####")[1].replace(",", ""))
