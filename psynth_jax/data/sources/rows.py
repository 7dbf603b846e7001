r"""Rows of a data set, wherever they are: one file, a directory, or a data set on the Hugging Face hub.

    .jsonl .jsonl.gz    one JSON object a line
    .json .json.gz      a JSON list of objects, or JSON lines
    .parquet            read one row group after the other
    .tsv .tsv.gz        columns named by the caller or else by the first line; a field's newlines are written \n

Each row comes with its place, "file:number" from 1, for messages.  Knows no source.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

from psynth_jax.data.record import read_json_lines
from psynth_jax.data.sources import hub
from psynth_jax.data.sources.layout import SUFFIXES, choose_files
from psynth_jax.errors import DataError

PlacedRow: TypeAlias = tuple[str, dict[str, Any]]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
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
      path_or_hub_id: a file, a directory, or "owner/name".
      revision: of the data set on the hub; None is the newest.
      config: which configuration of the data set, or several, read one after the other; None is its only or default one.
      split: which split.
      columns: names for the columns of .tsv files; without any, their first line has them.

    Raises:
      DataError: there is no such data set, config or split, it cannot be fetched, or a file is damaged; with file and line.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_file():
        yield from read_file(path, columns)
        return
    configs = [config] if config is None or isinstance(config, str) else list(config)
    if path.is_dir():
        names = sorted(str(file.relative_to(path).as_posix()) for file in path.rglob("*") if file.is_file())
        card = path / "README.md" if "README.md" in names else None
        for one in configs:
            for name in choose_files(names, card, str(path), one, split):
                yield from read_file(path / name, columns)
    elif _HUB_ID.fullmatch(str(path_or_hub_id)) and not str(path_or_hub_id).endswith(SUFFIXES):
        data_set = hub.find(str(path_or_hub_id), revision)
        card = data_set.fetch("README.md") if "README.md" in data_set.files else None
        for one in configs:
            for name in choose_files(data_set.files, card, data_set.name, one, split):
                yield from read_file(data_set.fetch(name), columns, f"{data_set.name}/{name}")
    else:
        raise DataError(f"there is no data at {path_or_hub_id}: no such file or directory, and no hub id (owner/name)")


def read_file(path: Path, columns: Sequence[str] = (), shown: str | None = None) -> Iterator[PlacedRow]:
    """Go through the rows of one file; `shown` is what it is called in places.  Raises `DataError` with file and line."""
    shown = shown or str(path)
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{shown} has none of the endings that can be read: {', '.join(SUFFIXES)}")
    kind = Path(path.name.removesuffix(".gz")).suffix
    values: Iterable[tuple[int, Any]]
    if kind == ".parquet":
        values = _parquet(path, shown)
    elif kind == ".tsv":
        values = _tsv(path, columns, shown)
    elif kind == ".json" and _begins_a_list(path, shown):
        values = _json_list(path, shown)
    else:
        values = read_json_lines(path)
    for number, value in values:
        if not isinstance(value, dict):
            raise DataError(f"{shown}:{number}: a row is a JSON object, not {type(value).__name__}")
        yield f"{shown}:{number}", value


def _open(path: Path) -> IO[str]:
    # newline="" leaves line ends to csv; JSON does not mind them
    return (
        gzip.open(path, "rt", encoding="utf-8", newline="")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8", newline="")
    )


def _begins_a_list(path: Path, shown: str) -> bool:
    try:
        with _open(path) as file:
            while char := file.read(1):
                if not char.isspace():
                    return char == "["
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {shown}: {error}") from None
    return False


def _json_list(path: Path, shown: str) -> Iterator[tuple[int, Any]]:
    try:
        with _open(path) as file:
            values = json.load(file)
    except json.JSONDecodeError as error:
        raise DataError(f"{shown}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from None
    except (OSError, EOFError, ValueError, RecursionError) as error:  # not UTF-8, or beyond what JSON readers take
        raise DataError(f"cannot read {shown}: {error}") from None
    yield from enumerate(values, 1)


def _tsv(path: Path, columns: Sequence[str], shown: str) -> Iterator[tuple[int, dict[str, str]]]:
    number = 0
    try:
        with _open(path) as file:
            for number, fields in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
                columns = [*columns] or fields
                if not fields or (number == 1 and fields == columns):
                    continue
                if len(fields) != len(columns):
                    raise DataError(f"{shown}:{number}: {len(fields)} fields, not {len(columns)} ({', '.join(columns)})")
                yield number, {name: field.replace("\\n", "\n") for name, field in zip(columns, fields, strict=True)}
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {shown} after line {number}: {error}") from None


def _parquet(path: Path, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=_PARQUET_ROWS, row_groups=[group]):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"cannot read {shown} after row {number}: {reason}") from None
