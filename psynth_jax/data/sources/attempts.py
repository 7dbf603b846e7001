r"""Word problems with what several workers wrote about each, as `psynth data attempts` collects it.

    {"question": "Natalia sold ...", "answer": "Natalia sold 48/2 = <<48/2=24>>24 ...\n#### 72",
     "attempts": ["48 + 24 = 72, so ...", "..."]}

The answer is in the form of GSM8K.  Each attempt is a branch, right or wrong; the target is the
answer's reasoning without its annotations, with the number in the form of `data.final_answer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from psynth_jax.config import Config
from psynth_jax.data.final_answer import with_final_answer
from psynth_jax.data.record import BranchText, Record
from psynth_jax.data.sources.fields import Row, UnfitError, digest, items, text
from psynth_jax.data.sources.source import Source, dropping
from psynth_jax.data.synthetic.world import split_of

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_NUMBER = "####"


class AttemptOptions(Config):
    """Which rows become records.

    split: those whose question has its hash in it; "all" takes every row.
    """

    split: Literal["train", "validation", "test", "all"] = "all"


def solution(answer: str) -> tuple[str, str]:
    """Return the reasoning and the number of an answer as GSM8K has it.

    Raises `UnfitError` for another form.
    """
    reasoning, found, number = answer.rpartition(_NUMBER)
    number = number.strip().replace(",", "")
    if not found or not number:
        raise UnfitError(f"the answer does not end in {_NUMBER} and a number")
    lines = [line.strip() for line in _ANNOTATION.sub("", reasoning).splitlines()]
    return "\n".join(filter(None, lines)), number


def _convert(row: Row, options: AttemptOptions) -> Iterator[Record]:
    question = text(row.get("question"), "question")
    if not question:
        raise UnfitError("no question")
    if options.split not in ("all", split_of(question)):
        raise UnfitError("of another split")
    reasoning, number = solution(text(row.get("answer"), "answer"))
    attempts = [text(each, "an attempt") for each in items(row.get("attempts"), "attempts")]
    branches = tuple(BranchText(attempt) for attempt in attempts if attempt)
    if not branches:
        raise UnfitError("no attempts")
    target = with_final_answer(reasoning, number).strip()
    yield Record(digest(question), "attempts", question, branches, target, (number,))


ATTEMPTS = Source(
    "attempts",
    dropping(_convert),
    "Word problems with the attempts of several workers, from `psynth data attempts`",
    AttemptOptions,
)
