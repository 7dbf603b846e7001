"""Tokenised examples on disk: one directory a task, read at random.

    DIR/<task>/examples.array_record   an example a record, compressed one by one (group_size:1)
    DIR/<task>/lengths.npy             int32 [E, 7], columns as in `Lengths`
    DIR/<task>/task.json               format, task, count, vocabulary, end_id, tokenizer (its fingerprint), wording (that of
                                       the prompts), template (variables of the chat template; absent: none), model, source
                                       (what it was made from), dropped {reason: count}, lengths_sha256 (of lengths.npy;
                                       older directories have none)

An example is little-endian int32, then its id:

    | id bytes | prompt | pasted | target | W | W x (prefix, kept) |  tokens of all these, in this order  |  id, UTF-8  |
    '---------------------- lengths ----------------------------------'

A directory is written whole or not at all.  Knows no source and no batch.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import tokenize
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsIndex

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from psynth_jax.axes import HostArray
from psynth_jax.data.counts import counted
from psynth_jax.data.example import BranchTokens, Example, ExampleSource, Lengths, lengths_of
from psynth_jax.data.missing import without_missing
from psynth_jax.directories import made, replacing, writing
from psynth_jax.errors import DataError, InputError
from psynth_jax.files import read_text, refuse_special
from psynth_jax.prompts import baseline_messages, synthesis_messages
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path
from psynth_jax.storage.staging import list_files, staged
from psynth_jax.template_variables import TemplateVariables, checked_variables, described

FORMAT = 1
_EXAMPLES, _LENGTHS, _TASK = "examples.array_record", "lengths.npy", "task.json"
# What task.json has besides its format, and of which kind it is.  int: not negative.
_INFO: Mapping[str, type] = {
    "task": str,
    "count": int,
    "wording": str,
    "source": dict,
    "dropped": dict,
    "tokenizer": str,
    "vocabulary": int,
    "end_id": int,
    "model": str,
}
_MOST = 2**31 - 1
# What the reader of examples raises for damaged files.
_READER_ERRORS = (RuntimeError, OSError, ValueError, LookupError, TypeError, OverflowError, SystemError)
_PROMPT_PARTS = 5  # the lengths before those of the branches
_INT = np.dtype("<i4")


def to_bytes(example: Example) -> bytes:
    """Return the stored form of an example, without its task."""
    name = example.id.encode()
    parts = [example.prompt, example.pasted, example.target]
    parts += [part for branch in example.branches for part in (branch.prefix, branch.kept)]
    lengths = list(map(len, parts))
    header = [len(name), *lengths[:3], len(example.branches), *lengths[3:]]
    return b"".join([np.asarray(header, _INT).tobytes(), *(np.asarray(part, _INT).tobytes() for part in parts), name])


def digest(examples: ExampleSource, at_most: int | None = None) -> str:
    """Return a hash of all examples of a task, in their order, or of about `at_most` that are evenly spaced."""
    summed = hashlib.sha256()
    every = 1 if at_most is None else max(len(examples) // at_most, 1)
    for number in range(0, len(examples), every):
        summed.update(to_bytes(examples[number]))
    return summed.hexdigest()


def from_bytes(stored: bytes, task: str) -> Example:
    """Read an example; its arrays are read-only views.  Raises `DataError` for bytes that are no example."""
    numbers = np.frombuffer(stored, _INT, len(stored) // _INT.itemsize)
    if len(numbers) < _PROMPT_PARTS or not 0 <= numbers[4] <= len(numbers):
        raise DataError("it is not an example")
    start = _PROMPT_PARTS + 2 * int(numbers[4])
    lengths = [*numbers[1:4].tolist(), *numbers[_PROMPT_PARTS:start].tolist()]
    tokens = sum(lengths)
    if min(lengths) < 0 or (start + tokens) * _INT.itemsize + numbers[0] != len(stored):
        raise DataError("its lengths do not add up")
    if tokens and np.min(numbers[start : start + tokens]) < 0:
        raise DataError("it has a token below 0")
    borders = [start, *(start + end for end in itertools.accumulate(lengths))]
    prompt, pasted, target, *kept = (numbers[first:last] for first, last in itertools.pairwise(borders))
    branches = tuple(BranchTokens(*pair) for pair in zip(kept[::2], kept[1::2], strict=True))
    return Example(stored[borders[-1] * _INT.itemsize :].decode(), task, prompt, pasted, target, branches)


def wording() -> str:
    """Return a hash of how prompts are worded: examples made with other words are not what a model is asked later."""
    messages = [synthesis_messages("{question}"), baseline_messages("{question}", ["{first}", "{second}"])]
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Which tokens examples are made of: the tokenizer's fingerprint, how many tokens it has, and what ends a target.

    model: what the user called the model whose tokenizer it is.  template: variables of its chat template.
    """

    tokenizer: str
    vocabulary: int
    end_id: int
    model: str
    template: TemplateVariables = dataclasses.field(default_factory=dict)


class ShardWriter:
    """Writes the examples of one task to DIR/<task>, as a context; when it is left by an error, nothing is left of it.

    What was there before is replaced.  `source` and `dropped` may be filled until the end.
    """

    def __init__(self, directory: str | AnyPath, task: str, vocabulary: Vocabulary):
        """Prepare to write; the disk is touched when the context is entered.

        Raises `DataError` for a task that cannot be the name of a directory.
        """
        if not task.strip(".") or "/" in task or "\0" in task or os.sep in task:
            raise DataError(f"{task!r} cannot be the name of a task: it names a directory")
        self.directory = as_path(directory) / task
        self.task = task
        self.source: dict[str, Any] = {}
        self.dropped: dict[str, int] = {}
        self._vocabulary = vocabulary
        self._lengths = array.array("i")  # a row after the other
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Open a new directory next to the one that is to be written.

        Raises `DataError` when it cannot be written, and `InputError` when something else than examples is there.
        """
        with writing(self.directory), contextlib.ExitStack() as opening:
            opening.enter_context(made(self.directory.parent))
            names = (_EXAMPLES, _LENGTHS, _TASK)
            self._fresh = opening.enter_context(replacing(self.directory, names, "a directory of examples"))
            with _file_errors():
                self._writer = ArrayRecordWriter(str(self._fresh / _EXAMPLES), "group_size:1")
            self._stack = opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Move the directory into place, or drop it after an error.

        Raises `DataError` when the disk does not take it, or when there is no example.
        """
        if kind is not None:
            with contextlib.suppress(RuntimeError):  # it may say once more that the disk is full
                self._writer.close()
            self._stack.__exit__(kind, error, trace)
            return
        with writing(self.directory), self._stack:
            self._finish()

    def add(self, example: Example) -> None:
        """Append an example.  Raises `DataError` when the disk is full."""
        with writing(self.directory), _file_errors():
            self._writer.write(to_bytes(example))
        self._lengths.extend(lengths_of(example))

    def __len__(self) -> int:
        return len(self._lengths) // len(Lengths._fields)

    def _finish(self) -> None:
        with _file_errors():
            self._writer.close()
        if not self._lengths:
            raise DataError(f"there are no examples to write to {self.directory}")
        lengths = io.BytesIO()
        np.save(lengths, np.asarray(self._lengths, _INT).reshape(-1, len(Lengths._fields)), allow_pickle=False)
        # np.save itself does not say why a file could not be written
        (self._fresh / _LENGTHS).write_bytes(lengths.getvalue())
        info = {"format": FORMAT, "task": self.task, "count": len(self), **dataclasses.asdict(self._vocabulary)}
        info |= {"wording": wording(), "source": self.source, "dropped": self.dropped}
        info["lengths_sha256"] = hashlib.sha256(lengths.getvalue()).hexdigest()
        (self._fresh / _TASK).write_text(json.dumps(info, ensure_ascii=False, indent=1), encoding="utf-8")


@contextlib.contextmanager
def _file_errors() -> Iterator[None]:
    """Raise what array_record says of the file system as Python does."""
    try:
        yield
    except RuntimeError as error:
        number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
        raise OSError(number, str(error).split(";")[0]) from None


class Shard:
    """The examples of one task, read at random: `len`, `shard[index]`, `lengths` and `info`.

    Safe to share between threads; another process that gets it opens the files again.

    lengths: int32 `[E, 7]`, read-only, columns as in `Lengths`.  info: what task.json says.
    """

    def __init__(
        self,
        directory: str | AnyPath,
        tokenizer: str | Collection[str] | None = None,
        template: TemplateVariables | None = None,
    ):
        """Open a directory and check that its files belong together.

        Args:
          directory: of one task.
          tokenizer: fingerprint of the tokenizer that its tokens must be of, or several that are right; None takes any.
          template: variables of the chat template that its prompts must be rendered with; None takes any.

        Raises:
          DataError: it is no such directory, another version's, another tokenizer's, made with other template variables,
            or one of its files is missing or damaged; the message says which and what helps.
        """
        place = as_path(directory)
        self.directory = _staged(place) if isinstance(place, BucketPath) else place
        self._tokenizer = (tokenizer,) if isinstance(tokenizer, str) else tokenizer
        self._template = template
        self.info: dict[str, Any] = self._read_info()
        self.task: str = self.info["task"]
        self.lengths = self._read_lengths()
        file = self.directory / _EXAMPLES
        try:
            refuse_special(file, DataError)
            self._source = ArrayRecordDataSource(str(file))
        except (*_READER_ERRORS, DataError) as error:
            raise self._damaged(_EXAMPLES, str(error).split(";")[0]) from None
        if not len(self._source) == len(self.lengths) == self.info["count"]:
            # A file that is cut off opens, and has no examples.
            found = f"{counted(len(self._source), 'example')} and {counted(len(self.lengths), 'row')} of lengths"
            raise self._damaged(_EXAMPLES, f"there are {found}, not {self.info['count']} of each")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Return an example; negative indices count from the end.

        Raises `IndexError` beyond the last one, and `DataError` where the file is damaged.
        """
        number = range(len(self))[index]
        try:
            example = from_bytes(self._source[number], self.task)
        except (*_READER_ERRORS, DataError) as error:
            raise self._damaged(_EXAMPLES, f"example {number}: {str(error).split(';')[0]}") from None
        if list(lengths_of(example)) != self.lengths[number].tolist():
            # What is planned by the lengths would not hold the example.
            raise self._damaged(_LENGTHS, f"example {number} has other lengths")
        return example

    def __reduce__(self) -> tuple[type[Self], tuple[Path, Collection[str] | None, TemplateVariables | None]]:
        return type(self), (self.directory, self._tokenizer, self._template)

    def _read_info(self) -> dict[str, Any]:
        path = self.directory / _TASK
        try:
            if not path.exists():
                raise DataError(f"{self.directory} is no directory of examples: it has no {_TASK}")
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {str(self.directory)!r}: {error}") from None
        try:
            info = json.loads(read_text(path, DataError))
        except DataError as error:
            raise self._damaged(_TASK, str(error)) from None
        except (ValueError, RecursionError) as error:
            raise self._damaged(_TASK, str(error)) from None
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            found = info.get("format") if isinstance(info, dict) else None
            raise DataError(f"{self.directory} has format {found!r:.40}, this version reads {FORMAT}: prepare it again")
        # Earlier versions knew no template variables, and wrote none.
        info["template"] = checked_variables(info.get("template"), f"template of {self.directory / _TASK}", DataError)
        self._check_info(info)
        if self._tokenizer is not None and info["tokenizer"] not in self._tokenizer:
            raise DataError(
                f"{self.directory} was prepared with the tokenizer of {info['model']}, which is another than this model's: "
                "prepare it again with this model"
            )
        if self._template is not None and info["template"] != self._template:
            raise DataError(
                f"{self.directory} was prepared with {described(info['template'])}, and is used with "
                f"{described(self._template)}: prepare it again (--template), or train with the same `template`"
            )
        if info["wording"] != wording():
            raise DataError(f"{self.directory} was prepared with other words around the questions: prepare it again")
        return info

    def _check_info(self, info: Mapping[str, Any]) -> None:
        missing = [key for key in _INFO if key not in info]
        if missing:
            raise self._damaged(_TASK, f"it has no {', '.join(missing)}")
        for key, kind in _INFO.items():
            value = info[key]
            is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST
            if not (is_number if kind is int else isinstance(value, kind)):
                raise self._damaged(_TASK, f"its {key} is {value!r:.40}")
        if not info["task"].strip():
            raise self._damaged(_TASK, "its task is empty")
        if info["count"] == 0:
            raise self._damaged(_TASK, "it has no examples")
        if not all(isinstance(count, int) for count in info["dropped"].values()):
            raise self._damaged(_TASK, "its dropped has a value that is no count")
        try:
            json.dumps(without_missing(info), ensure_ascii=False).encode()
        except (ValueError, RecursionError):  # half of a surrogate pair, lists thousands deep
            raise self._damaged(_TASK, "it has text that is not Unicode, or values that are too deep") from None

    def _read_lengths(self) -> HostArray:
        path, columns = self.directory / _LENGTHS, len(Lengths._fields)
        try:
            refuse_special(path, DataError)
            content = path.read_bytes()
        except (OSError, DataError) as error:
            raise self._damaged(_LENGTHS, str(error)) from None
        expected = self.info.get("lengths_sha256")
        if expected is not None and hashlib.sha256(content).hexdigest() != expected:
            raise self._damaged(_LENGTHS, f"it is not the file that {_TASK} is of")
        # Not np.load: it believes what the head of a damaged file says, and reads other formats, too.
        file = io.BytesIO(content)
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
        # The head is read as a Python literal.
        except (
            ValueError,
            TypeError,
            SyntaxError,
            LookupError,
            AttributeError,
            RecursionError,
            tokenize.TokenError,
        ) as error:
            raise self._damaged(_LENGTHS, str(error)[:200]) from None
        if shape[1:] != (columns,) or dtype != _INT or by_column:
            raise self._damaged(_LENGTHS, f"it is {dtype} {list(shape)}, not int32 [E, {columns}]")
        numbers = content[file.tell() :]
        if len(numbers) != shape[0] * columns * _INT.itemsize:
            raise self._damaged(_LENGTHS, f"it has {len(numbers):,} bytes for {shape[0]:,} rows")
        lengths = np.frombuffer(numbers, _INT).reshape(shape)
        if lengths.size and np.min(lengths) < 0:
            raise self._damaged(_LENGTHS, "it has a length below 0")
        return lengths

    def _damaged(self, file: str, reason: str) -> DataError:
        return DataError(f"{self.directory / file} is missing or damaged ({' '.join(reason.split())}): prepare it again")


def is_shard(directory: AnyPath) -> bool:
    """Whether a directory is that of one task."""
    return (directory / _TASK).is_file()


def _staged(directory: BucketPath) -> Path:
    """Return a local copy of examples in a bucket: array_record reads files only."""
    try:
        return staged(directory)
    except InputError as error:
        raise DataError(str(error)) from None


def open_shards(
    directory: str | AnyPath,
    tokenizer: str | Collection[str] | None = None,
    template: TemplateVariables | None = None,
) -> list[Shard]:
    """Open what `psynth data prepare` wrote: one task's directory, or the one that has those of several, by name.

    Arguments and errors as for `Shard`; a directory without any is a `DataError`, too.
    """
    directory = as_path(directory)
    if isinstance(directory, BucketPath):
        return _open_staged(directory, tokenizer, template)
    try:
        is_one = (directory / _TASK).exists()
        tasks = sorted(file.parent for file in directory.glob(f"*/{_TASK}") if not file.parent.name.startswith("."))
    except (OSError, ValueError) as error:  # a name that is too long, a folder that nobody may look into
        raise DataError(f"cannot read {str(directory)!r}: {error}") from None
    if is_one:
        return [Shard(directory, tokenizer, template)]
    if not tasks:
        raise DataError(f"there are no examples in {directory}: neither it nor a directory in it has a {_TASK}")
    return [Shard(task, tokenizer, template) for task in tasks]


def _open_staged(
    directory: BucketPath, tokenizer: str | Collection[str] | None, template: TemplateVariables | None
) -> list[Shard]:
    """Open the tasks of a directory in a bucket, each copied by itself: adding one copies no other again."""
    names = [each.name for each in list_files(directory, DataError)]
    if _TASK in names:
        return [Shard(directory, tokenizer, template)]
    tasks = sorted(name.removesuffix(f"/{_TASK}") for name in names if name.count("/") == 1 and name.endswith(f"/{_TASK}"))
    if not tasks:
        raise DataError(f"there are no examples in {directory}: neither it nor a directory in it has a {_TASK}")
    return [Shard(directory / task, tokenizer, template) for task in tasks]
