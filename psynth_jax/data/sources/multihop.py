"""HotpotQA and 2WikiMultihopQA: a question over several paragraphs, each paragraph a branch under its title.

    {"_id": "5a7a", "question": "...", "answer": "Paris", "type": "bridge", "level": "hard",
     "context": [["Title", ["First sentence.", " Second one."]], ...],      or {"title": [...], "sentences": [[...], ...]},
     "supporting_facts": [["Title", 0], ...]}                               or {"title": [...], "sent_id": [...]}

`context` and `supporting_facts` may also be texts that spell such JSON, a paragraph may be one text, and `supporting_titles`
a list of titles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from psynth_jax.config import Config
from psynth_jax.data.record import BranchText, Record
from psynth_jax.data.sources.fields import Row, UnfitError, digest, items, kept, structure, text
from psynth_jax.data.sources.source import Amount, Source, dropping

Paragraph: TypeAlias = tuple[str, str]  # title, text

SHORT_QUERY = "{question}\n\nAnswer with nothing but the answer itself: a name, a date, a number, a few words, or yes or no."
PUBLISHED_QUERY = (
    "{question}\n\nFirst say what each of the notes is about. Then decide which of them support the answer. Then answer "
    "from those. Give the final answer in \\boxed{{}}."
)


class MultihopOptions(Config):
    r"""How questions become records.

    style: "short" has the answer alone as target; "published" has a think block that names the titles of all paragraphs and
    of those that support the answer, and then \boxed{answer}.  max_contexts: branches at most, 0 for all; supporting
    paragraphs are kept first.  exact_contexts: drop rows with another number of paragraphs; 0 takes any.  complete_support:
    drop rows of whose supporting paragraphs one is missing: nobody can answer them.
    """

    style: Literal["short", "published"] = "short"
    max_contexts: Amount = 0
    exact_contexts: Amount = 0
    complete_support: bool = False


def _paragraph_text(value: Any) -> str:
    if isinstance(value, str):
        return text(value, "a paragraph")
    return " ".join(filter(None, (text(sentence, "a sentence") for sentence in items(value, "a paragraph"))))


def read_paragraphs(value: Any) -> list[Paragraph]:
    """Read contexts in any of their forms; paragraphs without text and second copies are left out.

    Raises `UnfitError` for what has none of these forms.
    """
    value = structure(value)
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        titles, bodies = items(value.get("title"), "context"), items(value.get("sentences"), "context")
        if len(titles) != len(bodies):
            raise UnfitError("context has more titles than paragraphs, or fewer")
        pairs = list(zip(titles, bodies, strict=True))
    else:
        for entry in items(value, "context"):
            if isinstance(entry, Mapping):
                pairs.append((entry.get("title"), entry.get("sentences") or entry.get("text")))
            elif isinstance(entry, list | tuple) and len(entry) == 2:
                pairs.append((entry[0], entry[1]))
            else:
                raise UnfitError("a paragraph of context is no pair of title and text")
    paragraphs = [(text(title, "a title"), _paragraph_text(body)) for title, body in pairs]
    return list(dict.fromkeys(paragraph for paragraph in paragraphs if paragraph[1]))


def read_supporting_titles(row: Row) -> set[str]:
    """Return the titles of the paragraphs that support the answer.  Raises `UnfitError` for an unknown form."""
    facts = structure(row.get("supporting_facts"))
    if isinstance(facts, Mapping):
        titles = items(facts.get("title"), "supporting_facts")
    else:
        entries = items(facts, "supporting_facts")
        if not all(isinstance(entry, list | tuple) and entry for entry in entries):
            raise UnfitError("supporting_facts has an entry that is no pair of title and sentence")
        titles = [entry[0] for entry in entries]
    titles += items(row.get("supporting_titles"), "supporting_titles")
    return {text(title, "a supporting title") for title in titles} - {""}


def _choose(paragraphs: Sequence[Paragraph], supporting: set[str], most: int) -> list[Paragraph]:
    """Keep at most so many, the supporting ones before others, in the order of the row."""
    if not most or len(paragraphs) <= most:
        return list(paragraphs)
    ranked = sorted(range(len(paragraphs)), key=lambda index: paragraphs[index][0] not in supporting)
    return [paragraphs[index] for index in sorted(ranked[:most])]


def _thought(titles: Sequence[str], supporting: Sequence[int]) -> str:
    lines = ["The notes are about:", *(f"{number}. {title}" for number, title in enumerate(titles, 1))]
    if supporting:
        lines += ["These support the answer:", *(f"{index + 1}. {titles[index]}" for index in supporting)]
    return "\n".join(lines)


def _converter(task: str) -> Callable[[Row, MultihopOptions], Iterator[Record]]:
    def convert(row: Row, options: MultihopOptions) -> Iterator[Record]:
        question, answer = text(row.get("question"), "question"), text(row.get("answer"), "answer")
        if not question:
            raise UnfitError("no question")
        if not answer:
            raise UnfitError("no answer")
        paragraphs = read_paragraphs(row.get("context"))
        if not paragraphs:
            raise UnfitError("no paragraph with text")
        if options.exact_contexts and len(paragraphs) != options.exact_contexts:
            raise UnfitError("another number of paragraphs than exact_contexts")
        titles_of_support = read_supporting_titles(row)
        if options.complete_support and not titles_of_support <= {title for title, _ in paragraphs}:
            raise UnfitError("a supporting paragraph is missing")
        paragraphs = _choose(paragraphs, titles_of_support, options.max_contexts)
        supporting = [index for index, (title, _) in enumerate(paragraphs) if title in titles_of_support]
        query, target = SHORT_QUERY, answer
        if options.style == "published":
            thought = _thought([title for title, _ in paragraphs], supporting)
            query, target = PUBLISHED_QUERY, f"<think>\n{thought}\n</think>\n\\boxed{{{answer}}}"
        aliases = [alias for key in ("answer_aliases", "aliases") for alias in items(row.get(key), key)]
        answers = dict.fromkeys([answer, *filter(None, (text(alias, "an alias") for alias in aliases))])
        row_id = text(row.get("_id"), "_id") or text(row.get("id"), "id") or digest(question, answer)
        yield Record(
            row_id,
            task,
            query.format(question=question),
            tuple(BranchText(f"{title}\n{body}".lstrip()) for title, body in paragraphs),
            target,
            tuple(answers),
            {**kept(row, "type", "level"), "supporting": supporting},
        )

    return convert


HOTPOTQA = Source(
    "hotpotqa",
    dropping(_converter("hotpotqa")),
    "Questions over two of ten Wikipedia paragraphs (HotpotQA, distractor setting)",
    MultihopOptions,
    hub_id="hotpotqa/hotpot_qa",
    config="distractor",
)
TWO_WIKI = Source(
    "2wikimultihopqa",
    dropping(_converter("2wikimultihopqa")),
    "Questions over two to four of ten Wikipedia paragraphs (2WikiMultihopQA)",
    MultihopOptions,
    hub_id="xanhho/2WikiMultihopQA",
    revision="612bc5039a457880d9e7d84c3b0a4cf154b70e4f",
)
