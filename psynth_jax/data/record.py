"""One schema for all training and evaluation data: a query, the branches that are read for it, and what is to be said.

    {"id": "hotpotqa-5a7a", "task": "hotpotqa", "query": "...", "target": "Paris",
     "branches": [{"prefix": "what stands before and is not kept", "text": "what the synthesizer reads"}, ...],
     "answers": ["Paris"], "meta": {"level": "hard"}}

Records are texts: they know no tokenizer and no model.  A file of them is JSON lines, plain or gzipped.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from psynth_jax.data.json_values import read_json_values
from psynth_jax.data.missing import TooDeepError, without_missing
from psynth_jax.directories import made, writing
from psynth_jax.errors import DataError, shown
from psynth_jax.files import refuse_special
from psynth_jax.foreign import reason
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path


@dataclasses.dataclass(frozen=True)
class BranchText:
    """A branch as text: `prefix` is prefilled and not kept, `text` is what the synthesizer reads."""

    text: str
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """A question with its branches and the text to be learned.

    id: unique within its task.  answers: what an evaluation accepts; empty where there is no short answer.  meta: JSON
    values of the source that are worth keeping.
    """

    id: str
    task: str
    query: str
    branches: tuple[BranchText, ...]
    target: str
    answers: tuple[str, ...] = ()
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what nothing can be learned from, and what no file can hold.  Raises `DataError` naming the field."""
        record = f"record {shown(self.id)}"
        for name in ("id", "task", "query", "target"):
            _check_text(f"{record}: its {name}", getattr(self, name))
        for name in ("id", "task"):
            if "\0" in getattr(self, name):
                raise DataError(f"{record}: its {name} has a NUL character")
        if not self.branches:
            raise DataError(f"{record} has no branches")
        for number, branch in enumerate(self.branches, start=1):
            _check_text(f"{record}: branch {number}", branch.text)
            _check_text(f"{record}: the prefix of branch {number}", branch.prefix, may_be_empty=True)
        for number, answer in enumerate(self.answers, start=1):
            _check_text(f"{record}: answer {number}", answer, may_be_empty=True)
        try:
            json.dumps(self.meta, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{record}: its meta has no JSON form: {reason(error)}") from None

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read a record from its JSON form; null, and what else is missing, is as if it was not there.

        Raises `DataError` for a missing, unknown or wrongly typed key.
        """
        if not isinstance(value, Mapping):
            raise DataError(f"a record is a JSON object, not {type(value).__name__}")
        try:
            value = _given(without_missing(value))
        except TooDeepError as error:
            raise DataError(str(error)) from None
        known = {field.name for field in dataclasses.fields(cls)}
        required = known - {"answers", "meta"}
        wrong = [f"missing {name}" for name in sorted(required - value.keys())]
        wrong += [f"unknown {shown(name)[1:-1]}" for name in sorted(map(str, value.keys() - known))]
        texts = ("id", "task", "query", "target")
        wrong += [f"{name} is no text" for name in texts if name in value and not isinstance(value[name], str)]
        wrong += [] if _are_texts(value.get("answers", [])) else ["answers is no list of texts"]
        wrong += [] if isinstance(value.get("meta", {}), dict) else ["meta is no object"]
        branches = value.get("branches", [])
        if not isinstance(branches, list) or not all(map(_is_branch, branches)):
            wrong.append('branches is no list of {"text": ..., "prefix": ...}')
        if wrong:
            raise DataError(f"record {shown(value.get('id', ''))}: " + "; ".join(wrong))
        return cls(
            **{name: value[name] for name in texts},
            branches=tuple(BranchText(branch["text"], branch.get("prefix", "")) for branch in branches),
            answers=tuple(value.get("answers", ())),
            meta=value.get("meta", {}),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; what is empty and optional is left out."""
        branches = []
        for branch in self.branches:
            branches.append({"text": branch.text} | ({"prefix": branch.prefix} if branch.prefix else {}))
        value: dict[str, Any] = {
            "id": self.id,
            "task": self.task,
            "query": self.query,
            "branches": branches,
            "target": self.target,
        }
        if self.answers:
            value["answers"] = list(self.answers)
        if self.meta:
            value["meta"] = self.meta
        return value


def _check_text(what: str, value: object, may_be_empty: bool = False) -> None:
    if not isinstance(value, str):
        raise DataError(f"{what} is no text")
    if not may_be_empty and not value.strip():
        raise DataError(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"half of a surrogate pair (\\u{ord(value[error.start]):04x}) at character {error.start + 1}"
        raise DataError(f"{what} is not Unicode text: {half}") from None


def _given(value: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is null: keys of the record, prefixes, and answers among others."""
    given = {name: field for name, field in value.items() if field is not None}
    answers, branches = given.get("answers"), given.get("branches")
    if isinstance(answers, list):
        given["answers"] = [answer for answer in answers if answer is not None]
    for branch in branches if isinstance(branches, list) else ():
        if isinstance(branch, dict) and branch.get("prefix", "") is None:
            del branch["prefix"]
    return given


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_branch(value: Any) -> bool:
    texts = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return texts and "text" in value and not value.keys() - {"text", "prefix"}


def read_records(path: str | AnyPath) -> Iterator[Record]:
    """Go through the records of a file of JSON lines, or of a JSON list, plain or gzipped.

    Raises `DataError` naming file, line and what is wrong.
    """
    for number, value in read_json_values(path):
        try:
            yield Record.from_json(value)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from None


def write_records(path: str | AnyPath, records: Iterable[Record]) -> int:
    """Write records as JSON lines (gzipped for .gz), whole or not at all; return how many.

    Raises `DataError` naming the file when it cannot be written.
    """
    place = as_path(path)
    if isinstance(place, BucketPath):
        with writing(place), tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / place.name
            count = _write_records(file, records, gzipped=place.suffix == ".gz")
            place.upload(file)
        return count
    target = check_target(place)
    with writing(target), made(target.parent):
        return _write_records(target, records, gzipped=place.suffix == ".gz")


def check_target(path: str | Path) -> Path:
    """Return where a file is to be written: links are followed, so that they stay links.

    Raises `DataError` for what no file can be written to.
    """
    try:
        given = Path(path).expanduser().absolute()
        target = given.resolve()
        is_directory = target.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot write {str(path)!r}: {error}") from None
    # /dev/stdout leads to the file behind it: it would be replaced, with all that is in it.
    if given.is_relative_to("/dev") or given.is_relative_to("/proc"):
        raise DataError(f"cannot write {path}: give the name of a file, which is written atomically")
    refuse_special(target, DataError)
    if is_directory:
        raise DataError(f"cannot write {path}: it is a directory, give the name of a file")
    return target


def _write_records(path: Path, records: Iterable[Record], *, gzipped: bool) -> int:
    part = path.with_name(f".{path.name}.part")
    count = 0
    try:
        with gzip.open(part, "wt", encoding="utf-8") if gzipped else part.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
                count += 1
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count
