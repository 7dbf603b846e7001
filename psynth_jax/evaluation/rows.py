"""The folder of an evaluation: what was set, and a row for every answer, written as it comes and never asked for again.

    DIR/settings.json   what rows must share to be compared: data, model, adapters, sampling, batch, device
    DIR/rows.jsonl      {"method": "branches", "task": "hotpotqa", "id": "5a7a", "prediction": "Paris", "f1": 1.0, ...}
    DIR/summary.json    means, intervals and comparisons (see summary.py)

Several processes may share a folder, each with rows of its own (see lines.py).  Knows no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

from psynth_jax.directories import followed
from psynth_jax.errors import DataError, InputError
from psynth_jax.evaluation.lines import Lines, Shard, json_text
from psynth_jax.files import read_text, refuse_special, write_text
from psynth_jax.storage.paths import is_bucket

Row: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str, str]

SETTINGS, ROWS, SUMMARY = "settings.json", "rows", "summary.json"

# Finish reasons of rows that no model answered: the question did not fit, or the method asks none.
DOES_NOT_FIT = "does_not_fit"
NO_MODEL = "no_model"

MEASURED = ("ttft_s", "total_s", "prompt_tokens", "cached_tokens", "generated_tokens")

# What every row has besides its scores.  "number?" is a number, or null where the finish reason allows it.
_KEYS = {
    **dict.fromkeys(("method", "task", "id", "finish_reason", "prediction"), "text"),
    **dict.fromkeys(MEASURED, "number?"),
}
_MAY_LACK: Mapping[str, Sequence[str]] = {DOES_NOT_FIT: MEASURED, NO_MODEL: ("ttft_s", "total_s")}
_NOT_IN_EARLIER_VERSIONS = ("total_s",)


def key_of(row: Row) -> Key:
    """Return (method, task, id), of which there is one row."""
    return row["method"], row["task"], row["id"]


class RowFile:
    """The rows of a folder: those that are there, and a way to add more."""

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any],
        scores: Sequence[str] = (),
        same: Mapping[str, Callable[[Any], bool]] | None = None,
        shard: Shard = Shard(),  # noqa: B008  it is frozen
    ):
        """Open a folder, made if it is not there; read its rows.

        Args:
          folder: where it is.
          scores: names of the scores that every row must have, each from 0 to 1.
          settings: JSON values by name.  None is for what no row depends on yet, such as an adapter that no method uses.
          same: by name, whether a value in the folder means the setting of today, where equality is not enough.
          shard: the part of the questions whose rows this process writes; those of all parts are read.

        Raises:
          InputError: the folder cannot be made, is of something else, or its rows were made with other settings.
          DataError: a row is damaged.
        """
        if is_bucket(folder):
            raise InputError(f"{folder} is in a bucket: rows are appended one by one, which needs a folder on a disk")
        self.folder = Path(folder)
        try:
            followed(self.folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror or error}") from None
        except ValueError as error:  # a zero byte in the name
            raise InputError(f"cannot make the folder {str(folder)!r}: {error}") from None
        self._scores = scores
        self._same = dict(same or {})
        self._lines = Lines(self.folder, ROWS, shard)
        self.settings = self._take_settings(settings)
        self.rows: dict[Key, Row] = {}
        self.read()

    def open(self) -> AbstractContextManager[None]:
        """Keep the file open for `append`.  Raises `InputError` when it cannot be written."""
        return self._lines.open()

    def append(self, row: Row) -> None:
        """Write a row to the end, and out of this process.  Raises `InputError` when the disk does not take it."""
        self._lines.append(row)
        self.rows[key_of(row)] = row

    def read(self) -> None:
        """Read all rows, those of other processes too, again.  Raises `DataError` naming a row that is damaged."""
        self.rows = {}
        for where, row in self._lines.read():
            wrong = self._wrong(row)
            if wrong:
                raise DataError(
                    f"{where}: not a row of an evaluation: {wrong}; take the line out, and its question is asked again"
                )
            self.rows[key_of(row)] = row

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, whole or not at all.  Raises `InputError` when it cannot be written."""
        _write_whole(self.folder / SUMMARY, summary)

    def _take_settings(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check what was set before, add what was not, and keep and return all of it."""
        path = self.folder / SETTINGS
        before: Mapping[str, Any] = {}
        if path.exists():
            before = _read_object(path)
        if path.exists() and not _has_lines(self.folder):
            before = {}
        elif path.exists():
            # Earlier versions had no template variables and scored all of an answer, and did not say so.
            for name, value in {"template": {}, "final_answer": False}.items():
                if name in settings and name not in before:
                    before = {name: value, **before}
        elif not path.exists() and _has_files(self.folder):
            raise InputError(f"{self.folder} is not the folder of an evaluation: it has files, but no {SETTINGS}")
        wrong = [
            f"{name} is {_shown(value)}, it was {_shown(before[name])}"
            for name, value in settings.items()
            if None not in (value, before.get(name)) and not self._means(name, before[name], value)
        ]
        if wrong:
            raise InputError(f"{self.folder} has rows of another evaluation: {'; '.join(wrong)}; choose another folder")
        merged = dict(before)
        for name, value in settings.items():
            if value is not None or name not in before:
                merged[name] = value
        if merged != before:
            _write_whole(path, merged)
        return merged

    def _means(self, name: str, before: Any, value: Any) -> bool:
        same = self._same.get(name)
        return before == value or (same is not None and same(before))

    def _wrong(self, row: Any) -> str:
        """Say what makes a value no row; "" for nothing."""
        if not isinstance(row, dict):
            return "it is no object"
        for name in (*_KEYS, *self._scores):
            if name in _NOT_IN_EARLIER_VERSIONS and name not in row:
                continue
            if name not in row:
                return f"it has no {name}"
            kind, value = _KEYS.get(name, "score"), row[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            right = {
                "text": isinstance(value, str),
                "number?": value is None or (is_number and value >= 0),
                "score": is_number and 0 <= value <= 1,
            }
            if not right[kind]:
                return f"its {name} is {value!r:.40}"
        may_lack = _MAY_LACK.get(row["finish_reason"], ())
        if any(row.get(name, 0) is None for name in MEASURED if name not in may_lack):
            return "it has no time or no tokens, and does not say that it did not fit"
        return ""


def _has_lines(folder: Path) -> bool:
    """Whether anything was written under the settings that are there; a run that failed at once wrote nothing."""
    try:
        return any(path.stat().st_size > 0 for path in folder.glob("*.jsonl"))
    except OSError as error:  # a link to itself
        raise InputError(f"cannot read {folder}: {error.strerror or error}") from None


def _has_files(folder: Path) -> bool:
    """Whether there is anything but settings that another process is writing, or was when it was killed."""
    try:
        return any(not path.name.startswith(f".{SETTINGS}-") for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}") from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no settings")
    return value


def _write_whole(path: Path, value: Mapping[str, Any]) -> None:
    try:
        refuse_special(path)
        write_text(path, json_text(value, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def _shown(value: Any) -> str:
    """Show a setting, a digest by its first letters, and nothing at length."""
    if isinstance(value, str) and len(value) >= 64:
        return f"{value[:12]}…"
    try:
        return f"{value!s:.80}".encode("utf-8", "backslashreplace").decode()
    except (RecursionError, ValueError):  # lists thousands deep, or a number of thousands of digits
        return f"a value of type {type(value).__name__}"
