"""The folder of an evaluation: what was set, and a row for every answer, written as it comes and never asked for again.

    DIR/settings.json   what rows must share to be compared: data, model, adapters, sampling, batch, device
    DIR/rows.jsonl      {"method": "branches", "task": "hotpotqa", "id": "5a7a", "prediction": "Paris", "f1": 1.0, ...}
    DIR/summary.json    means, intervals and comparisons (see summary.py)

A row is complete when its line has ended.  A process that dies leaves at most one line without an end; it is dropped, and
its question is asked again.  Knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from psynth_jax.data.record import read_json_lines
from psynth_jax.errors import DataError, InputError

Row: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str, str]

SETTINGS, ROWS, SUMMARY = "settings.json", "rows.jsonl", "summary.json"


def key_of(row: Row) -> Key:
    """Return (method, task, id), of which there is one row."""
    return row["method"], row["task"], row["id"]


class RowFile:
    """The rows of a folder: those that are there, and a way to add more."""

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any],
        same: Mapping[str, Callable[[Any], bool]] | None = None,
    ):
        """Open a folder, made if it is not there; read its rows.

        Args:
          settings: JSON values by name.  None is for what no row depends on yet, such as an adapter that no method uses.
          same: by name, whether a value in the folder means the setting of today, where equality is not enough.

        Raises:
          InputError: the folder cannot be made, is of something else, or its rows were made with other settings.
          DataError: a row is damaged.
        """
        self.folder = Path(folder)
        self._file: TextIO | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None
        self._same = dict(same or {})
        self.settings = self._take_settings(settings)
        self.rows = self._read()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep the file open for `append`."""
        with (self.folder / ROWS).open("a", encoding="utf-8") as self._file:
            yield
        self._file = None

    def append(self, row: Row) -> None:
        """Write a row to the end, and out of this process.  Raises `InputError` when the disk does not take it."""
        assert self._file is not None, "rows are added inside of open()"
        try:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self.folder / ROWS}: {error.strerror}; the rows before are kept") from None
        self.rows[key_of(row)] = row

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, whole or not at all."""
        _write_whole(self.folder / SUMMARY, summary)

    def _take_settings(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check what was set before, add what was not, and keep and return all of it."""
        path = self.folder / SETTINGS
        before: Mapping[str, Any] = {}
        if path.exists():
            before = _read_object(path)
        elif any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is not the folder of an evaluation: it has files, but no {SETTINGS}")
        wrong = [
            f"{name} is {_shown(value)}, it was {_shown(before[name])}"
            for name, value in settings.items()
            if None not in (value, before.get(name)) and not self._means(name, before[name], value)
        ]
        if wrong:
            raise InputError(f"{self.folder} has rows of another evaluation: {'; '.join(wrong)}; choose another folder")
        merged = {name: before.get(name) if value is None else value for name, value in settings.items()}
        if merged != before:
            _write_whole(path, merged)
        return merged

    def _means(self, name: str, before: Any, value: Any) -> bool:
        same = self._same.get(name)
        return before == value or (same is not None and same(before))

    def _read(self) -> dict[Key, Row]:
        path = self.folder / ROWS
        if not path.exists():
            return {}
        _drop_torn_line(path)
        rows = {}
        for number, row in read_json_lines(path):
            if not isinstance(row, dict) or not {"method", "task", "id"} <= row.keys():
                raise DataError(f"{path}:{number}: not a row of an evaluation")
            rows[key_of(row)] = row
        return rows


def _drop_torn_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no settings")
    return value


def _write_whole(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _shown(value: Any) -> str:
    """Show a setting, a digest by its first letters."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) >= 64 else str(value)
