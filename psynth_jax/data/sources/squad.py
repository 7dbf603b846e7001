"""SQuAD: a question about one paragraph of an article, which stands among other paragraphs of the same article.

    {"title": "Normans", "paragraphs": [{"context": "The Normans ...",
        "qas": [{"id": "56dd", "question": "...", "answers": [{"text": "France", "answer_start": 1}]}]}]}

A row is an article, or a whole file: {"version": "v2.0", "data": [article, ...]}.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Annotated, Any

import pydantic

from psynth_jax.config import Config, Count
from psynth_jax.data.record import BranchText, Record
from psynth_jax.data.sources.fields import Row, UnfitError, digest, items, mapping, text
from psynth_jax.data.sources.multihop import SHORT_QUERY
from psynth_jax.data.sources.source import Converted, Dropped, Source, dropping


class SquadOptions(Config):
    """How questions become records.

    contexts: branches, the paragraph that has the answer among them.  seed: of which others, and in which order.
    """

    contexts: Count = 4
    seed: Annotated[int, pydantic.Field(ge=0)] = 0


def _convert(row: Row, options: SquadOptions) -> Iterator[Converted]:
    for article in items(row.get("data"), "data") or [row]:
        yield from _of_article(mapping(article, "an article"), options)


def _of_article(article: Row, options: SquadOptions) -> Iterator[Converted]:
    title = text(article.get("title"), "title").replace("_", " ")
    paragraphs = [mapping(each, "a paragraph") for each in items(article.get("paragraphs"), "paragraphs")]
    contexts = [text(each.get("context"), "context") for each in paragraphs]
    if not any(contexts):
        raise UnfitError("no paragraph with text")
    for number, paragraph in enumerate(paragraphs):
        for asked in items(paragraph.get("qas"), "qas"):
            yield _of_question(mapping(asked, "a question"), title, contexts, number, options)


def _of_question(asked: Row, title: str, contexts: list[str], number: int, options: SquadOptions) -> Converted:
    question = text(asked.get("question"), "question")
    found = [text(mapping(each, "an answer").get("text"), "an answer") for each in items(asked.get("answers"), "answers")]
    answers = tuple(dict.fromkeys(filter(None, found)))
    if not question:
        return Dropped("no question")
    if not answers:
        return Dropped("no answer")
    if not contexts[number]:
        return Dropped("no paragraph with text")
    row_id = text(asked.get("id"), "id") or digest(question, contexts[number])
    others = dict.fromkeys(context for context in contexts if context and context != contexts[number])
    random = Random(f"{options.seed} {row_id}")
    chosen = random.sample(list(others), min(options.contexts - 1, len(others)))
    place = random.randrange(len(chosen) + 1)
    chosen.insert(place, contexts[number])
    branches = tuple(BranchText(f"{title}\n{context}".lstrip()) for context in chosen)
    query = SHORT_QUERY.format(question=question)
    meta: dict[str, Any] = {"title": title, "supporting": [place]}
    return Record(row_id, "squad", query, branches, answers[0], answers, meta)


SQUAD = Source(
    "squad",
    dropping(_convert),
    "Questions over one of several paragraphs of a Wikipedia article (SQuAD 1.1 and 2.0)",
    SquadOptions,
)
