"""From a source to files: what `psynth data prepare` does.

    rows ──source──> records ──┬─ tokenised ──> DIR/<task>/      (`prepare_examples`, several tasks if the records have them)
      '── Dropped ──> Tally    '──────────────> FILE.jsonl[.gz]  (`prepare_records`)

Knows no source by name but the synthetic one, which has no rows to be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from psynth_jax.config import Config, Count
from psynth_jax.data.example import Example, tokenise
from psynth_jax.data.record import Record, write_records
from psynth_jax.data.shards import ShardWriter, Vocabulary
from psynth_jax.data.sources import SOURCES, Dropped, Source, convert_rows, hub, read_rows
from psynth_jax.data.sources.layout import SUFFIXES
from psynth_jax.data.synthetic import SyntheticOptions, synthetic_record
from psynth_jax.errors import DataError, InputError
from psynth_jax.tokenizer import Tokenizer

SYNTHETIC = Source(
    "synthetic",
    lambda row, options: [
        synthetic_record(options.kinds[row["index"] % len(options.kinds)], row["index"], options.seed, options.split)
    ],
    "Generated questions over facts in several branches; nothing is read",
    SyntheticOptions,
)


class PrepareOptions(Config):
    """What is to be prepared.

    source: a name of `known_sources`.  input: file, directory or hub id; None is the source's own data set.  options:
    "key=value" texts for the source.  limit: only the first so many records.  seed: short for the option of that name.
    revision, config, split: of the data set; None is the source's own, for its own data set, or else the newest, the only
    one, and "train".
    """

    source: str
    input: str | None = None
    options: tuple[str, ...] = ()
    limit: Count | None = None
    seed: int | None = None
    revision: str | None = None
    config: str | None = None
    split: str | None = None


@dataclasses.dataclass
class Tally:
    """What became of the rows: how many were read, how many records of each task were written, why others were dropped."""

    rows: int = 0
    tasks: Counter[str] = dataclasses.field(default_factory=Counter)
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)


Watch = Callable[[Tally], None]


def known_sources() -> dict[str, Source]:
    """Return every source by its name."""
    return {**SOURCES, SYNTHETIC.name: SYNTHETIC}


def prepare_examples(
    asked: PrepareOptions, into: str | Path, tokenizer: Tokenizer, model: str, on_progress: Watch | None = None
) -> Tally:
    """Tokenise the records of a source and write them to INTO/<task>, each task whole or not at all.

    Args:
      asked: source, input and options.
      tokenizer: of the model that is to be trained; it needs a chat template and an end token.  Its template variables are
        written down.
      model: what that model is called, for `task.json`.
      on_progress: called with the tally after every row.

    Raises:
      DataError: the input cannot be read, a row is wrong, no row gives an example, or the disk is full.
      InputError, ConfigError: an unknown source or option, or a tokenizer without an end token or a chat template.
    """
    run = _Run(asked, on_progress)
    if tokenizer.end_id is None:
        raise InputError(f"the tokenizer of {model} has no end token, with which a target ends")
    vocabulary = Vocabulary(tokenizer.fingerprint, tokenizer.size, tokenizer.end_id, model, tokenizer.template_variables)
    writers: dict[str, ShardWriter] = {}
    with contextlib.ExitStack() as stack:
        for example in _examples(run.records(), tokenizer, tokenizer.end_id, run.tally):
            if example.task not in writers:
                writers[example.task] = stack.enter_context(ShardWriter(into, example.task, vocabulary))
            writers[example.task].add(example)
            run.tally.tasks[example.task] += 1
        run.check_not_empty()
        facts = run.source_facts()
        for writer in writers.values():
            writer.source, writer.dropped = facts, dict(run.tally.dropped)
    return run.tally


def prepare_records(asked: PrepareOptions, file: str | Path, on_progress: Watch | None = None) -> Tally:
    """Write the records of a source as JSON lines (gzipped for .gz), whole or not at all.

    Arguments and errors as for `prepare_examples`.
    """
    run = _Run(asked, on_progress)

    def counted() -> Iterator[Record]:
        for record in run.records():
            run.tally.tasks[record.task] += 1
            yield record
        run.check_not_empty()

    write_records(file, counted())
    return run.tally


def _examples(records: Iterable[Record], tokenizer: Tokenizer, end_id: int, tally: Tally) -> Iterator[Example]:
    """Tokenise records; count those without tokens."""
    for record in records:
        try:
            example = tokenise(record, tokenizer, end_id)
        except DataError:
            tally.dropped["no token in the target or in a branch"] += 1
            continue
        yield example


class _Run:
    """One reading of a source: its records, and what is to be known of where they came from."""

    def __init__(self, asked: PrepareOptions, on_progress: Watch | None):
        """Check everything that can be checked without reading."""
        sources = known_sources()
        if asked.source not in sources:
            raise InputError(f"there is no source {asked.source!r}; choose from {', '.join(sorted(sources))}")
        self.source = sources[asked.source]
        self.tally = Tally()
        self._asked = asked
        self._on_progress = on_progress
        self._files: dict[str, None] = {}
        self._input = asked.input or self.source.hub_id
        pairs = [*asked.options, *([] if asked.seed is None else [f"seed={asked.seed}"])]
        if self.source is SYNTHETIC:
            if asked.input or asked.revision or asked.config:
                raise InputError("synthetic records are generated: leave out the input, its revision and its config")
            if asked.limit is None:
                raise InputError("synthetic records have no end: say with --limit how many there shall be")
            pairs += [] if asked.split is None else [f"split={asked.split}"]
        elif self._input is None:
            raise InputError(f"{self.source.name} has no data set of its own: give a file, a directory or a hub id")
        self._options = self.source.parse_options(pairs)
        # What the source says of its own data set holds for no other.
        own = self.source if asked.input is None else Source("", self.source.convert, "")
        self._revision = asked.revision or own.revision
        self._config = asked.config or own.config
        self._split = asked.split or own.split

    def records(self) -> Iterator[Record]:
        """Go through the records, counting rows and what is dropped."""
        return itertools.islice(self._kept(), self._asked.limit)

    def _kept(self) -> Iterator[Record]:
        for item in convert_rows(self.source, self._rows(), self._options):
            if isinstance(item, Dropped):
                self.tally.dropped[item.reason] += 1
            else:
                yield item

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for where, row in self._placed_rows():
            self.tally.rows += 1
            self._files[where.rpartition(":")[0]] = None
            yield where, row
            if self._on_progress is not None:
                self._on_progress(self.tally)

    def _placed_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._input is None:
            return ((f"synthetic:{index}", {"index": index}) for index in itertools.count())
        if not Path(self._input).expanduser().exists() and "/" in self._input and not self._input.endswith(SUFFIXES):
            # What is newest now is written down, so that it can be had again.
            self._revision = hub.find(self._input, self._revision).commit
        return read_rows(self._input, self._revision, self._config, self._split)

    def source_facts(self) -> dict[str, Any]:
        """Return what task.json says of the source: what was read, how, and a hash of each local file that was."""
        facts: dict[str, Any] = {"name": self.source.name, "options": self._options.model_dump(mode="json")}
        facts |= {"limit": self._asked.limit, "rows": self.tally.rows}
        if self._input is None:
            return facts
        given = Path(self._input).expanduser()
        base = given if given.is_dir() else given.parent
        files = [Path(name) for name in self._files if given.exists()]
        facts |= {"input": self._input, "revision": self._revision, "config": self._config, "split": self._split}
        return facts | {"sha256": {str(file.relative_to(base)): _sha256(file) for file in files}}

    def check_not_empty(self) -> None:
        """Raise `DataError` when nothing came of the rows."""
        if not self.tally.tasks:
            reasons = "; ".join(f"{reason}: {count:,}" for reason, count in self.tally.dropped.most_common())
            read = f"none of the {self.tally.rows:,} rows of {self._input} gives a record for {self.source.name}"
            raise DataError(read + (f" ({reasons})" if reasons else ""))


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
