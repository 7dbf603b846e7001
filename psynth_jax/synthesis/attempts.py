"""What workers write about the questions of a file, appended to a file of JSON lines.

    {"question": "...", "answer": "... #### 72"}   one row of the questions
       │ workers
    {..., "attempts": ["...", ...], "made": {"model": ..., "workers": 4, ...}}   that row, written

A row is complete when its line has ended; a process that dies leaves at most one line without an
end, which is dropped.  Questions whose rows are there are not asked again.  What a worker draws
depends on the seed, the question and the worker's number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from psynth_jax.data.json_values import read_json_values
from psynth_jax.errors import DataError, InputError
from psynth_jax.files import drop_torn_line, refuse_special
from psynth_jax.prompts import Role, worker_prompts
from psynth_jax.storage.paths import is_bucket
from psynth_jax.synthesis.pipeline import ParallelSynthesis


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question of the file, with the answer that goes with it."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class AttemptOptions:
    """How workers write.  Worker i of a question gets role i, starting over after the last."""

    roles: Sequence[Role]
    workers: int = 4
    max_new_tokens: int = 192
    temperature: float = 0.7
    seed: int = 0
    batch: int = 8

    def made(self, model: str) -> dict[str, Any]:
        """Return what the rows of one file share."""
        return {
            "model": model,
            "roles": [role.text for role in self.roles],
            "workers": self.workers,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }


def asked_of(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Asked]:
    """Read questions, each once.

    Raises `DataError` naming the row that has no question or no answer as texts.
    """
    found: dict[str, Asked] = {}
    for where, row in rows:
        for name in ("question", "answer"):
            value = row.get(name)
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{where}: a row needs texts for question and answer")
        asked = Asked(row["question"].strip(), row["answer"])
        found.setdefault(asked.question, asked)
    if not found:
        raise DataError("the file has no questions")
    return list(found.values())


class AttemptFile:
    """The file that is written: what is in it, and a way to add to it."""

    def __init__(self, path: Path, made: Mapping[str, Any]):
        """Read what is there.

        Raises:
          InputError: the file cannot be read or mended, or its rows were made otherwise.
          DataError: a row is damaged.
        """
        if is_bucket(path):
            why = "rows are appended one by one, which needs a file on a disk"
            raise InputError(f"{path} is in a bucket: {why}")
        refuse_special(path)
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}")
        self.path = path
        self._made = dict(made)
        self.done = self._read()

    def append(self, file: TextIO, asked: Asked, attempts: Sequence[str]) -> None:
        """Write a row to the end, and out of this process.

        Raises `InputError` when the disk does not take it.
        """
        row = dataclasses.asdict(asked) | {"attempts": list(attempts), "made": self._made}
        try:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
        except OSError as error:
            why = f"{error.strerror or error}; the rows before are kept"
            raise InputError(f"cannot write {self.path}: {why}") from None
        self.done.add(asked.question)

    def open(self) -> TextIO:
        """Open the file for `append`.  Raises `InputError` when it cannot be written."""
        try:
            return self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}") from None

    def _read(self) -> set[str]:
        if not self.path.exists():
            return set()
        drop_torn_line(self.path)
        done = set()
        for number, row in read_json_values(self.path):
            where = f"{self.path}:{number}"
            if not isinstance(row, dict) or not isinstance(row.get("question"), str):
                raise DataError(f"{where}: not a row of attempts; choose another file for --into")
            if row.get("made") != self._made:
                differing = _differing(row.get("made"), self._made)
                raise InputError(f"{where} was made otherwise ({differing}); choose another file")
            done.add(row["question"])
        return done


def write_attempts(
    synth: ParallelSynthesis,
    questions: Sequence[Asked],
    file: AttemptFile,
    options: AttemptOptions,
    on_progress: Callable[[int], None],
) -> int:
    """Let workers write about every question that has no row yet; return how many that were.

    Args:
      on_progress: called with how many of `questions` have their row.

    Raises:
      InputError: the file cannot be written.
      ContextLengthError: a question and an attempt do not fit the model's context window.
    """
    left = [asked for asked in questions if asked.question not in file.done]
    with file.open() as opened:
        for batch in _batches(left, options.batch):
            texts = _written(synth, batch, options)
            for asked, attempts in zip(batch, texts, strict=True):
                file.append(opened, asked, attempts)
            on_progress(sum(asked.question in file.done for asked in questions))
    return len(left)


def _batches(questions: Sequence[Asked], size: int) -> Iterator[Sequence[Asked]]:
    for first in range(0, len(questions), size):
        yield questions[first : first + size]


def _written(
    synth: ParallelSynthesis,
    batch: Sequence[Asked],
    options: AttemptOptions,
) -> list[list[str]]:
    """Let all workers of all questions write, as one batch."""
    prompts, seeds = [], []
    for asked in batch:
        prompts.append(worker_prompts(asked.question, options.roles, options.workers))
        workers = range(options.workers)
        seeds.append([_seed(options.seed, asked.question, worker) for worker in workers])
    branches = synth.work(prompts, options.max_new_tokens, options.temperature, seed=seeds)
    written: list[list[str]] = branches.texts
    return written


def _seed(seed: int, question: str, worker: int) -> int:
    """Return a worker's own seed, wherever its question stands among others."""
    digest = hashlib.sha256(f"{seed} {worker} {question}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _differing(before: Any, now: Mapping[str, Any]) -> str:
    if not isinstance(before, Mapping):
        return "it does not say how"
    names = [name for name in now if before.get(name) != now[name]]
    return "; ".join(f"{name} was {before.get(name)!r:.60}" for name in names)
