"""Rows that are prepared already: in the published code's form (`browsecomp`), or in ours (`records`).

    {"question": "...", "gold": "...", "references": [...], "agent_reference_contexts": ["what is prefilled", ...],
     "agent_extract_contexts": ["its end, which is kept", ...], "query": "...", "answer": "..."}     the last three optional

Any file that the published code has prepared has this form, not only BrowseComp's.
"""

from __future__ import annotations

from collections.abc import Iterator

from psynth_jax.config import Config
from psynth_jax.data.record import BranchText, Record
from psynth_jax.data.sources.fields import Row, UnfitError, digest, items, kept, text
from psynth_jax.data.sources.source import Amount, Source, dropping


class PreparedOptions(Config):
    """How rows become records.

    task: of the records.  max_contexts: only the first so many contexts become branches; 0 keeps them all.
    """

    task: str = "browsecomp"
    max_contexts: Amount = 0


def _prepared(row: Row, options: PreparedOptions) -> Iterator[Record]:
    missing = [name for name in ("question", "gold", "references", "agent_reference_contexts") if name not in row]
    if missing:
        raise UnfitError(f"missing {', '.join(missing)}")
    items(row["references"], "references")
    contexts = [text(entry, "a context") for entry in items(row["agent_reference_contexts"], "agent_reference_contexts")]
    extracts = [text(entry, "an extract") for entry in items(row.get("agent_extract_contexts"), "agent_extract_contexts")]
    if extracts and len(extracts) != len(contexts):
        raise UnfitError("another number of extracts than of contexts")
    branches = [_branch(context, extract) for context, extract in zip(contexts, extracts or contexts, strict=True)]
    if not branches:
        raise UnfitError("no contexts")
    gold = text(row["gold"], "gold")
    query, target = (
        text(row.get("query"), "query") or text(row["question"], "question"),
        text(row.get("answer"), "answer") or gold,
    )
    if not query:
        raise UnfitError("no question")
    if not target:
        raise UnfitError("no answer")
    branches = branches[: options.max_contexts or None]
    row_id = text(row.get("id"), "id") or digest(query, target)
    meta = kept(row, "dataset")
    yield Record(row_id, options.task, query, tuple(branches), target, (gold,) if gold else (), meta)


def _branch(context: str, extract: str) -> BranchText:
    if not extract:
        raise UnfitError("an empty context or extract")
    if not context.endswith(extract):
        raise UnfitError("an extract is not the end of its context")
    return BranchText(extract, context[: len(context) - len(extract)])


def _records(row: Row, options: Config) -> Iterator[Record]:
    yield Record.from_json(row)


BROWSECOMP = Source(
    "browsecomp", dropping(_prepared), "Search trajectories, or any file that the published code prepared", PreparedOptions
)
RECORDS = Source("records", _records, "A file that has our own schema already")
