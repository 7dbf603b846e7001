"""What a source is: a converter of its rows, its options, and where its rows are found.

    rows.read_rows ──> (where, row) ──> Source.convert(row, options) ──> Record, Record, ... or Dropped(reason)

A row may give several records.  A row that gives none gives a `Dropped` with the reason, so that reasons can be counted.
Knows no file format and no source by name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import pydantic

from psynth_jax.config import Config
from psynth_jax.data.missing import TooDeepError, without_missing
from psynth_jax.data.record import Record
from psynth_jax.data.sources.fields import Row, UnfitError
from psynth_jax.errors import ConfigError, DataError

Amount = Annotated[int, pydantic.Field(ge=0)]


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A row that gives no record.  reason: the same words for every row that is dropped for it."""

    reason: str


Converted: TypeAlias = Record | Dropped
Converter: TypeAlias = Callable[[Row, Any], Iterable[Converted]]


class NoOptions(Config):
    """A source without options."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A kind of data set.

    convert: a row and an instance of `options` -> records, or why there are none; raises `DataError` only where the file
    promises our own schema.  hub_id, revision, config, split: where the published recipe takes its rows from; a tuple of
    configs is read one after the other.
    """

    name: str
    convert: Converter
    description: str
    options: type[Config] = NoOptions
    hub_id: str | None = None
    revision: str | None = None
    config: str | tuple[str, ...] | None = None
    split: str = "train"

    def parse_options(self, pairs: Sequence[str]) -> Config:
        """Read "key=value" texts.  Raises `ConfigError` naming the key and the options that this source has."""
        values: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals or key not in self.options.model_fields or key in values:
                problem = "is given twice" if key in values else f"is no option of {self.name}"
                known = ", ".join(self.options.model_fields) or "none"
                raise ConfigError(f"{pair!r} {problem}; write key=value, once each, with a key of: {known}")
            try:
                values[key] = json.loads(value.lower() if value.lower() in ("true", "false") else value)
            except (ValueError, RecursionError):
                values[key] = value
        return self.options.parse(values)


def dropping(convert: Converter) -> Converter:
    """Turn a converter that raises `UnfitError` into one that gives `Dropped`."""

    @functools.wraps(convert)
    def guarded(row: Row, options: Any) -> Iterator[Converted]:
        try:
            yield from convert(row, options)
        except UnfitError as reason:
            yield Dropped(str(reason))

    return guarded


def convert_rows(source: Source, rows: Iterable[tuple[str, Row]], options: Config | None = None) -> Iterator[Converted]:
    """Convert rows as `read_rows` gives them, and see to it that ids are unique.

    The second of two equal records is dropped; another record with an id that was there before gets "-2", "-3", ... behind
    its id.  Raises `DataError` that names the place of a row.
    """
    options = source.options() if options is None else options
    seen: dict[str, set[bytes]] = {}
    for where, row in rows:
        try:
            for item in source.convert(_plain(row), options):
                yield item if isinstance(item, Dropped) else _with_own_id(item, seen)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None


def _plain(row: Row) -> Row:
    """Return a row in which everything that is missing is None: no converter meets another form of it."""
    if not isinstance(row, Mapping):
        raise DataError(f"a row is a JSON object, not {type(row).__name__}")
    try:
        return without_missing(row)
    except TooDeepError as error:
        raise DataError(str(error)) from None


def _with_own_id(record: Record, seen: dict[str, set[bytes]]) -> Converted:
    content = json.dumps([record.query, record.target, [dataclasses.astuple(branch) for branch in record.branches]])
    fingerprint = hashlib.sha256(content.encode()).digest()[:8]
    with_this_id = seen.setdefault(f"{record.task}\0{record.id}", set())
    if fingerprint in with_this_id:
        return Dropped("the same record was there before")
    with_this_id.add(fingerprint)
    count = len(with_this_id)
    return record if count == 1 else dataclasses.replace(record, id=f"{record.id}-{count}")
