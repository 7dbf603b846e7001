r"""Rows of a data set, wherever they are: one file, a directory, or a data set on the Hugging Face hub.

    .jsonl .json   JSON by content: an object a line, objects over several lines, or a list of objects
    .tsv           columns named by the caller or the first line; a field's newlines are written \n
    .csv           the same, with quotes around fields that hold commas, quotes or newlines
    .parquet       read one row group after the other

All but the last may be gzipped, with .gz behind the ending.  Each row comes with its place, "file:number" from 1, for
messages.  Knows no source.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from psynth_jax.data.json_values import read_json_values
from psynth_jax.data.sources import hub
from psynth_jax.data.sources.layout import SUFFIXES, choose_files
from psynth_jax.data.text_files import LONGEST_LINE, text_lines
from psynth_jax.errors import DataError, InputError
from psynth_jax.files import refuse_special
from psynth_jax.foreign import first_line
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path, is_bucket
from psynth_jax.storage.staging import staged, staged_file

PlacedRow: TypeAlias = tuple[str, dict[str, Any]]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_INDEX = re.compile(r"__index_level_\d+__")  # what pandas writes for the numbers of rows, and hides again
_PARQUET_ROWS = 256  # as Python objects at a time


def read_rows(
    path_or_hub_id: str | Path,
    revision: str | None = None,
    config: str | Sequence[str] | None = None,
    split: str = "train",
    columns: Sequence[str] = (),
) -> Iterator[PlacedRow]:
    """Go through the rows of a data set in the order of its files.

    A file that is given is read whole.  Of a directory and of a data set on the hub, the files of one split are read: those
    that the data card in README.md gives it, or else those whose names say so, or else, when no name tells of a split and
    "train" is asked for, all.  Files of the hub are fetched one by one, when it is their turn.

    Args:
      path_or_hub_id: a file or a directory, here or in a bucket (gs://...), or "owner/name".
      revision: of the data set on the hub; None is the newest.
      config: which configuration of the data set, or several, read one after the other; None is its only or default one.
      split: which split.
      columns: names for the columns of .tsv files; without any, their first line has them.

    Raises:
      DataError: there is no such data set, config or split, it cannot be fetched, or a file is damaged; with file and line.
    """
    path = find_input(path_or_hub_id)
    if path is not None and path.is_file():
        yield from read_file(path, columns)
        return
    configs = [config] if config is None or isinstance(config, str) else list(config)
    if path is not None:
        names = _files_in(path)
        card = path / "README.md" if "README.md" in names else None
        for one in configs:
            for name in choose_files(names, card, str(path), one, split):
                yield from read_file(path / name, columns)
    else:
        data_set = hub.find(str(path_or_hub_id), revision)
        card = data_set.fetch("README.md") if "README.md" in data_set.files else None
        for one in configs:
            for name in choose_files(data_set.files, card, data_set.name, one, split):
                yield from read_file(data_set.fetch(name), columns, f"{data_set.name}/{name}")


def _files_in(directory: Path) -> list[str]:
    try:
        return sorted(str(file.relative_to(directory).as_posix()) for file in directory.rglob("*") if file.is_file())
    except OSError as error:
        raise DataError(f"cannot read {error.filename or directory}: {error.strerror or error}") from None


def find_input(path_or_hub_id: str | Path) -> Path | None:
    """Return the file or directory that is meant; None where it can only be a data set on the hub.

    What lies in a bucket is copied to this disk.  Raises `DataError` when it can be none of them.
    """
    if is_bucket(path_or_hub_id):
        return _from_bucket(as_path(path_or_hub_id))
    try:
        path = Path(path_or_hub_id).expanduser()
        is_there = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, a name that is too long, no such home
        raise DataError(f"there is no data at {str(path_or_hub_id)!r}: {error}") from None
    if is_there:
        refuse_special(path, DataError)
        return path
    name = str(path_or_hub_id)
    if _HUB_ID.fullmatch(name) and not name.endswith(SUFFIXES):
        return None
    raise DataError(f"there is no data at {name}: no such file or directory, and no hub id (owner/name)")


def _from_bucket(place: AnyPath) -> Path:
    assert isinstance(place, BucketPath)
    try:
        return staged_file(place) if place.is_file() else staged(place)
    except OSError as error:
        raise DataError(f"there is no data at {place}: {error.strerror}") from None
    except InputError as error:
        raise DataError(str(error)) from None


def read_file(path: Path, columns: Sequence[str] = (), shown: str | None = None) -> Iterator[PlacedRow]:
    """Go through the rows of one file; `shown` is what it is called in places.  Raises `DataError` with file and line."""
    shown = shown or str(path)
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{shown} has none of the endings that can be read: {', '.join(SUFFIXES)}")
    kind = Path(path.name.removesuffix(".gz")).suffix
    values: Iterable[tuple[int, Any]]
    if kind == ".parquet":
        values = _parquet(path, shown)
    elif kind in (".tsv", ".csv"):
        values = _table(_tsv(path, shown) if kind == ".tsv" else _csv(path, shown), columns, shown)
    else:
        values = read_json_values(path, shown)
    for number, value in values:
        if not isinstance(value, dict):
            raise DataError(f"{shown}:{number}: a row is a JSON object, not {type(value).__name__}")
        yield f"{shown}:{number}", value


def _table(
    lines: Iterable[tuple[int, list[str]]], columns: Sequence[str], shown: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """Give fields the names of their columns; the first line has them where the caller does not."""
    names = list(columns)
    first = True
    for number, fields in lines:
        if not names:
            names = fields
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise DataError(f"{shown}:{number}: two columns are called {twice[0]!r:.80}")
        is_head, first = first and fields == names, False
        if is_head:
            continue
        if len(fields) != len(names):
            found = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
            expected = " ".join(", ".join(names).split())
            raise DataError(f"{shown}:{number}: {found}, not {len(names)} ({expected:.200})")
        yield number, dict(zip(names, fields, strict=True))


def _tsv(path: Path, shown: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in text_lines(path, shown):
        if line:
            yield number, [field.replace("\\n", "\n") for field in line.split("\t")]


def _csv(path: Path, shown: str) -> Iterator[tuple[int, list[str]]]:
    lines = (line + "\n" for _, line in text_lines(path, shown))
    reader = csv.reader(lines, strict=True)
    while True:
        try:
            with _long_fields():
                fields = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{shown}:{max(reader.line_num, 1)}: not CSV: {error}") from None
        if fields is None:
            return
        if fields:
            yield reader.line_num, fields


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let a field be as long as a line may be.  The limit is one of the process: it is put back for others."""
    before = csv.field_size_limit(LONGEST_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    refuse_special(path, DataError)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise DataError(f"{shown}: two columns are called {twice[0]!r:.80}")
            kept = [name for name in names if not _INDEX.fullmatch(name)]
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=_PARQUET_ROWS, row_groups=[group], columns=kept):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
    # Besides its own errors: text that is not UTF-8, times out of range, unknown time zones, and sizes
    # in a damaged file that no memory holds.
    except (
        *(pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError),
        *(ArithmeticError, RuntimeError, MemoryError, ImportError),
    ) as error:
        raise DataError(f"cannot read {shown} after row {number}: {first_line(error)}") from None
