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
from psynth_jax.data.record import Record, check_target, write_records
from psynth_jax.data.shards import ShardWriter, Vocabulary, is_shard
from psynth_jax.data.sources import SOURCES, Dropped, Source, convert_rows, hub, read_rows
from psynth_jax.data.sources.rows import find_input
from psynth_jax.data.synthetic import SyntheticOptions, synthetic_record
from psynth_jax.errors import DataError, InputError
from psynth_jax.files import refuse_special
from psynth_jax.prompts import synthesis_messages
from psynth_jax.storage.paths import AnyPath, as_path
from psynth_jax.tokenizer import Tokenizer

SYNTHETIC = Source(
    "synthetic",
    lambda row, options: [
        synthetic_record(options.kinds[row["index"] % len(options.kinds)], row["index"], options.seed, options.split)
    ],
    "Generated questions over facts in several branches; nothing is read",
    SyntheticOptions,
)


_OTHER_FORMATS = (".parquet", ".tsv", ".tsv.gz", ".csv", ".csv.gz")


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


def check(asked: PrepareOptions, into: str | AnyPath | None = None, records: str | AnyPath | None = None) -> None:
    """Check all that can be checked without reading and without a model.

    That is: source, options, that the input is there, what would be ignored, and the target, which
    is a directory for examples or a file for records.

    Raises `InputError`, `ConfigError` or `DataError`, as `prepare_examples` does.
    """
    _Run(asked, None)
    if into is not None:
        _check_into(as_path(into))
    if records is not None:
        _check_records(records)


def prepare_examples(
    asked: PrepareOptions,
    into: str | AnyPath,
    tokenizer: Tokenizer,
    model: str,
    on_progress: Watch | None = None,
    vocabulary_size: int | None = None,
) -> Tally:
    """Tokenise the records of a source and write them to INTO/<task>, each task whole or not at all.

    Args:
      asked: source, input and options.
      tokenizer: of the model that is to be trained; it needs a chat template and an end token.  Its template variables are
        written down.
      model: what that model is called, for `task.json`.
      on_progress: called with the tally after every row and every record.
      vocabulary_size: number of tokens that the model has an embedding for; None compares nothing.

    Raises:
      DataError: the input cannot be read, a row is wrong, no row gives an example, a token has no embedding in the model,
        or the disk is full.
      InputError, ConfigError: an unknown source or option, or a tokenizer without an end token or a chat template.
    """
    run = _Run(asked, on_progress)
    if tokenizer.end_id is None:
        raise InputError(f"the tokenizer of {model} has no end token, with which a target ends")
    if vocabulary_size is not None and tokenizer.end_id >= vocabulary_size:
        raise InputError(
            f"the end token of {model} ({tokenizer.end_id}) has no embedding: the model has {vocabulary_size:,}, from 0"
        )
    _check_into(as_path(into))
    tokenizer.chat(synthesis_messages("?"))  # without a chat template, fail before anything is read
    vocabulary = Vocabulary(tokenizer.fingerprint, tokenizer.size, tokenizer.end_id, model, tokenizer.template_variables)
    writers: dict[str, ShardWriter] = {}
    with contextlib.ExitStack() as stack:
        for example in _examples(run.records(), tokenizer, tokenizer.end_id, run.tally):
            if vocabulary_size is not None:
                _check_ids(example, vocabulary_size, tokenizer, model)
            if example.task not in writers:
                writers[example.task] = stack.enter_context(ShardWriter(into, example.task, vocabulary))
            writers[example.task].add(example)
            run.tally.tasks[example.task] += 1
            run.tell()
        run.check_not_empty()
        facts = run.source_facts()
        for writer in writers.values():
            writer.source, writer.dropped = facts, dict(run.tally.dropped)
    return run.tally


def prepare_records(asked: PrepareOptions, file: str | AnyPath, on_progress: Watch | None = None) -> Tally:
    """Write the records of a source as JSON lines (gzipped for .gz), whole or not at all.

    Arguments and errors as for `prepare_examples`.
    """
    run = _Run(asked, on_progress)
    _check_records(file)

    def counted() -> Iterator[Record]:
        for record in run.records():
            run.tally.tasks[record.task] += 1
            run.tell()
            yield record
        run.check_not_empty()

    write_records(file, counted())
    return run.tally


def _check_records(file: str | AnyPath) -> None:
    """Refuse what no file can be written to, and the names of other formats."""
    other = next((ending for ending in _OTHER_FORMATS if str(file).endswith(ending)), None)
    if other is not None:
        raise InputError(f"records are JSON lines, and {file} would be read as {other}: name it .jsonl or .jsonl.gz")
    place = as_path(file)
    if isinstance(place, Path):
        check_target(place)


def _check_into(into: AnyPath) -> None:
    """Refuse what would be a directory of a task inside that of another, and what is no directory."""
    refuse_special(into, InputError)
    try:
        is_file, is_task = into.is_file(), is_shard(into)
    except (OSError, ValueError) as error:  # a name that is too long, a folder that nobody may look into
        raise InputError(f"cannot write to {str(into)!r}: {getattr(error, 'strerror', None) or error}") from None
    if is_file:
        raise InputError(f"{into} is a file: --into names a directory, and each task gets one in it")
    if is_task:
        raise InputError(
            f"{into} holds the examples of a task: each task gets a directory of its own in --into, "
            f"so give {into.parent}, or another directory"
        )


def _check_ids(example: Example, vocabulary_size: int, tokenizer: Tokenizer, model: str) -> None:
    """Refuse tokens that the model has no embedding for: it would read others in their place."""
    parts = [example.prompt, example.pasted, example.target]
    parts += [part for branch in example.branches for part in (branch.prefix, branch.kept)]
    largest = max(int(part.max(initial=0)) for part in parts)
    if largest >= vocabulary_size:
        token = tokenizer.backend.convert_ids_to_tokens(largest)
        raise DataError(
            f"task {example.task}, example {example.id!r}: its token {largest} ({token!r}) has no "
            f"embedding in {model}, which has {vocabulary_size:,}, from 0: the tokenizer is another "
            "model's, or has tokens that the model was not given"
        )


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
        self._place: Path | None = None  # of the input on this disk
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
        if self._input is not None:
            self._check_input(self._input)
        # What the source says of its own data set holds for no other.
        own = self.source if asked.input is None else Source("", self.source.convert, "")
        self._revision = asked.revision or own.revision
        self._config = asked.config or own.config
        self._split = asked.split or own.split

    def _check_input(self, given: str) -> None:
        """Refuse an input that is not there, and choices that it does not offer: they would be ignored."""
        place = self._place = find_input(given)
        if place is None:
            return
        choices = ["revision"] if place.is_dir() else ["revision", "config", "split"]
        ignored = [f"--{name}" for name in choices if getattr(self._asked, name) is not None]
        if ignored:
            kind = "a directory, not a data set on the hub" if place.is_dir() else "a file, which is read whole"
            raise InputError(f"{given} is {kind}: leave out {' and '.join(ignored)}")

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
            self.tell()

    def tell(self) -> None:
        """Tell whoever watches how far it is."""
        if self._on_progress is not None:
            self._on_progress(self.tally)

    def _placed_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._input is None:
            return ((f"synthetic:{index}", {"index": index}) for index in itertools.count())
        if self._place is None:
            # What is newest now is written down, so that it can be had again.
            self._revision = hub.find(self._input, self._revision).commit
        return read_rows(self._place or self._input, self._revision, self._config, self._split)

    def source_facts(self) -> dict[str, Any]:
        """Return what task.json says of the source: what was read, how, and a hash of each local file that was."""
        facts: dict[str, Any] = {"name": self.source.name, "options": self._options.model_dump(mode="json")}
        facts |= {"limit": self._asked.limit, "rows": self.tally.rows}
        if self._input is None:
            return facts
        facts |= {"input": self._input, "revision": self._revision, "config": self._config, "split": self._split}
        given = self._place
        if given is None:
            return facts | {"sha256": {}}
        base = given if given.is_dir() else given.parent
        files = map(Path, self._files)
        return facts | {"sha256": {name_of(file.relative_to(base)): _sha256(file) for file in files}}

    def check_not_empty(self) -> None:
        """Raise `DataError` when nothing came of the rows."""
        if not self.tally.tasks:
            reasons = "; ".join(f"{reason}: {count:,}" for reason, count in self.tally.dropped.most_common())
            if not self.tally.rows:
                raise DataError(f"{self._input} has no rows")
            rows = "the only row" if self.tally.rows == 1 else f"none of the {self.tally.rows:,} rows"
            gives = "gives no record" if self.tally.rows == 1 else "gives a record"
            read = f"{rows} of {self._input} {gives} for {self.source.name}"
            raise DataError(read + (f" ({reasons})" if reasons else ""))


def name_of(file: AnyPath) -> str:
    """Return the name of a file as Unicode text, whatever bytes it has."""
    return str(file).encode("utf-8", "backslashreplace").decode()


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from None
