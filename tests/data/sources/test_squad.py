"""SQuAD: a question's paragraph among others of its article."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.data.record import Record
from psynth_jax.data.sources import SOURCES, Dropped, convert_rows, read_rows
from tests.data.sources.converting import convert, reason


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["train-v2.0.json", "train-v2.0.json.gz", "train.jsonl"])
def test_a_file_as_it_is_published(tmp_path: Path, name: str, indent: int | None) -> None:
    content = b"\xef\xbb\xbf" + json.dumps({"version": "v2.0", "data": [ARTICLE, ARTICLE]}, indent=indent).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    items = list(convert_rows(SOURCES["squad"], read_rows(tmp_path / name)))
    once = convert("squad", ARTICLE)
    assert items[: len(once)] == once and len(items) == 2 * len(once)


def question(name: str, *answers: str) -> dict[str, object]:
    return {"id": name, "question": f"Which {name}?", "answers": [{"text": answer, "answer_start": 0} for answer in answers]}


ARTICLE: dict[str, Any] = {
    "title": "The_Normans",
    "paragraphs": [
        {"context": "They came from France.", "qas": [question("a", "France", "from France", "France")]},
        {"context": "They took England.", "qas": [question("b", "England"), question("c") | {"is_impossible": True}]},
        {"context": "They took Sicily.", "qas": []},
        {"context": "They built castles.", "qas": [question("d", "castles")]},
        {"context": "They spoke Norman.", "qas": []},
    ],
}

ONE_QUESTION = ARTICLE | {
    "paragraphs": [ARTICLE["paragraphs"][3], *({"context": f"Other {number}.", "qas": []} for number in range(8))]
}


def test_the_paragraph_stands_among_others() -> None:
    first, second, dropped, third = convert("squad", ARTICLE)
    assert dropped == Dropped("no answer")
    assert isinstance(first, Record) and isinstance(second, Record) and isinstance(third, Record)
    assert first.answers == ("France", "from France") and first.target == "France"
    assert first.query.startswith("Which a?\n\n")
    texts = [branch.text for branch in first.branches]
    assert len(set(texts)) == 4 and all(text.startswith("The Normans\nThey ") for text in texts)
    for record, told in ((first, "France"), (second, "England"), (third, "castles")):
        assert told in record.branches[record.meta["supporting"][0]].text


def test_a_whole_file_is_a_row() -> None:
    assert convert("squad", {"version": "v2.0", "data": [ARTICLE]}) == convert("squad", ARTICLE)


def test_an_article_with_fewer_paragraphs_has_fewer_branches() -> None:
    made = convert("squad", ARTICLE, contexts=9)
    assert [len(record.branches) for record in made if isinstance(record, Record)] == [5, 5, 5]
    assert {len(record.branches) for record in convert("squad", ARTICLE, contexts=1) if isinstance(record, Record)} == {1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"paragraphs": []}, "no paragraph with text"),
        ({"paragraphs": [{"context": "", "qas": []}]}, "no paragraph with text"),
        ({"paragraphs": [{"context": "x", "qas": [{"question": "", "answers": []}]}]}, "no question"),
        ({"paragraphs": "none"}, "paragraphs is no list"),
        ({"data": [1]}, "an article is no object"),
    ],
)
def test_what_cannot_be_used_is_dropped_with_a_reason(change: dict[str, object], said: str) -> None:
    assert reason("squad", ARTICLE | change) == said
