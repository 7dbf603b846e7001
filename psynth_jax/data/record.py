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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from psynth_jax.directories import followed, made, writing
from psynth_jax.errors import DataError


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
        """Refuse what nothing can be learned from.  Raises `DataError` naming the field."""
        for name in ("id", "task", "query", "target"):
            if not getattr(self, name).strip():
                raise DataError(f"record {self.id!r}: its {name} is empty")
        if not self.branches:
            raise DataError(f"record {self.id!r} has no branches")
        for number, branch in enumerate(self.branches, start=1):
            if not branch.text.strip():
                raise DataError(f"record {self.id!r}: branch {number} is empty")

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read a record from its JSON form.  Raises `DataError` for a missing, unknown or wrongly typed key."""
        if not isinstance(value, dict):
            raise DataError(f"a record is a JSON object, not {type(value).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}
        required = known - {"answers", "meta"}
        wrong = [f"missing {name}" for name in sorted(required - value.keys())]
        wrong += [f"unknown {name}" for name in sorted(value.keys() - known)]
        texts = ("id", "task", "query", "target")
        wrong += [f"{name} is no text" for name in texts if name in value and not isinstance(value[name], str)]
        wrong += [] if _are_texts(value.get("answers", [])) else ["answers is no list of texts"]
        wrong += [] if isinstance(value.get("meta", {}), dict) else ["meta is no object"]
        branches = value.get("branches", [])
        if not isinstance(branches, list) or not all(map(_is_branch, branches)):
            wrong.append('branches is no list of {"text": ..., "prefix": ...}')
        if wrong:
            raise DataError(f"record {value.get('id', '')!r}: " + "; ".join(wrong))
        return cls(
            **{name: value[name] for name in texts},
            branches=tuple(BranchText(branch["text"], branch.get("prefix", "")) for branch in branches),
            answers=tuple(value.get("answers", ())),
            meta=value.get("meta", {}),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; what is empty and optional is left out."""
        value = dataclasses.asdict(self)
        value["branches"] = [{k: v for k, v in branch.items() if v} for branch in value["branches"]]
        return {name: field for name, field in value.items() if field or name not in ("answers", "meta")}


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_branch(value: Any) -> bool:
    texts = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return texts and "text" in value and not value.keys() - {"text", "prefix"}


def read_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Go through the JSON values of a .jsonl or .jsonl.gz file with their line numbers, from 1; empty lines are passed over.

    Raises `DataError` naming the file, and the line where one is not JSON.
    """
    path = Path(path)
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}:{number + 1}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists thousands deep
        raise DataError(f"{path}:{number}: JSON that cannot be read: {error}") from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged after line {number}: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def read_records(path: str | Path) -> Iterator[Record]:
    """Go through the records of a .jsonl or .jsonl.gz file.  Raises `DataError` naming file, line and what is wrong."""
    for number, value in read_json_lines(path):
        try:
            yield Record.from_json(value)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from None


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records as JSON lines (gzipped for .gz), whole or not at all; return how many.

    Raises `DataError` naming the file when it cannot be written.
    """
    path = Path(path)
    with writing(path), made(followed(path).parent):
        return _write_records(path, records)


def _write_records(path: Path, records: Iterable[Record]) -> int:
    target = followed(path)  # a link stays a link
    part = target.with_name(f".{target.name}.part")
    count = 0
    try:
        with gzip.open(part, "wt", encoding="utf-8") if path.suffix == ".gz" else part.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
                count += 1
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return count
