"""HotpotQA and 2WikiMultihopQA: all forms of their contexts, titles in the branches, and who supports the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.data.sources.converting import reason, record

PARAGRAPHS = [("Ann", ["Ann wrote it.", " In 1901."]), ("Bob", ["Bob read it."]), ("Cara", ["Cara did not."])]
ROW = {
    "_id": "5a",
    "question": "Who wrote {it}?",
    "answer": "Ann",
    "type": "bridge",
    "level": "hard",
    "context": [[title, sentences] for title, sentences in PARAGRAPHS],
    "supporting_facts": [["Cara", 0], ["Ann", 0], ["Ann", 1]],
}
HUB_FORM = {
    "context": {"title": [title for title, _ in PARAGRAPHS], "sentences": [sentences for _, sentences in PARAGRAPHS]},
    "supporting_facts": {"title": ["Cara", "Ann", "Ann"], "sent_id": [0, 0, 1]},
}
SPELLED = {"context": json.dumps(ROW["context"]), "supporting_facts": json.dumps(ROW["supporting_facts"])}
WHOLE_TEXTS = {
    "context": [{"title": title, "text": " ".join(map(str.strip, sentences))} for title, sentences in PARAGRAPHS],
    "supporting_facts": None,
    "supporting_titles": ["Ann", "Cara"],
}


@pytest.mark.parametrize("task", ["hotpotqa", "2wikimultihopqa"])
@pytest.mark.parametrize("form", [{}, HUB_FORM, SPELLED, WHOLE_TEXTS], ids=["lists", "hub", "spelled", "texts"])
def test_all_forms_give_the_same_record(task: str, form: dict[str, Any]) -> None:
    made = record(task, ROW | form)
    assert (made.id, made.task, made.target, made.answers) == ("5a", task, "Ann", ("Ann",))
    texts = ["Ann\nAnn wrote it. In 1901.", "Bob\nBob read it.", "Cara\nCara did not."]
    assert [branch.text for branch in made.branches] == texts
    assert made.meta == {"type": "bridge", "level": "hard", "supporting": [0, 2]}
    assert made.query.startswith("Who wrote {it}?\n") and "nothing but the answer" in made.query


def test_published_style_names_titles_that_the_branches_carry() -> None:
    made = record("2wikimultihopqa", ROW, style="published")
    assert made.target == (
        "<think>\nThe notes are about:\n1. Ann\n2. Bob\n3. Cara\nThese support the answer:\n1. Ann\n3. Cara\n</think>\n"
        "\\boxed{Ann}"
    )
    assert "\\boxed{}" in made.query and made.answers == ("Ann",)
    assert all(branch.text.startswith(title + "\n") for branch, (title, _) in zip(made.branches, PARAGRAPHS, strict=True))


def test_without_known_support_the_thought_has_none() -> None:
    made = record("hotpotqa", ROW | {"supporting_facts": None}, style="published")
    assert "support" not in made.target and made.meta["supporting"] == []


def test_a_limit_keeps_the_supporting_paragraphs() -> None:
    made = record("hotpotqa", ROW, max_contexts=2)
    assert [branch.text.partition("\n")[0] for branch in made.branches] == ["Ann", "Cara"]
    assert made.meta["supporting"] == [0, 1]
    assert len(record("hotpotqa", ROW, max_contexts=1).branches) == 1


def test_empty_paragraphs_and_second_copies_are_left_out() -> None:
    context = [["Empty", ["", " "]], *ROW["context"], ROW["context"][0]]
    assert len(record("hotpotqa", ROW | {"context": context}, exact_contexts=3).branches) == 3


def test_aliases_are_answers_and_numbers_are_written_out() -> None:
    made = record("2wikimultihopqa", ROW | {"answer": 1901, "answer_aliases": ["in 1901", "1901"]})
    assert (made.target, made.answers) == ("1901", ("1901", "in 1901"))


def test_a_row_without_id_has_one_of_its_content() -> None:
    rows = [{**ROW, "_id": None, "question": question} for question in ("Who?", "Who else?")]
    ids = [record("hotpotqa", row).id for row in rows]
    assert all(ids) and ids[0] != ids[1]


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"question": " "}, {}, "no question"),
        ({"answer": None}, {}, "no answer"),
        ({"answer": True}, {}, "answer is no text"),
        ({"context": []}, {}, "no paragraph with text"),
        ({"context": [["Ann"]]}, {}, "a paragraph of context is no pair of title and text"),
        ({"context": {"title": ["Ann"], "sentences": []}}, {}, "context has more titles than paragraphs, or fewer"),
        ({"context": "Ann wrote it."}, {}, "context is no list"),
        ({"context": [["Ann", {"text": "x"}]]}, {}, "a paragraph is no list"),
        ({"supporting_facts": ["Ann"]}, {}, "supporting_facts has an entry that is no pair of title and sentence"),
        ({}, {"exact_contexts": 2}, "another number of paragraphs than exact_contexts"),
        ({"supporting_titles": ["Dan"]}, {"complete_support": True}, "a supporting paragraph is missing"),
    ],
)
def test_what_is_dropped(change: dict[str, Any], options: dict[str, Any], said: str) -> None:
    assert reason("hotpotqa", ROW | change, **options) == said


def test_rows_that_are_as_asked_for_are_kept() -> None:
    assert record("hotpotqa", ROW, exact_contexts=3, complete_support=True) == record("hotpotqa", ROW)
