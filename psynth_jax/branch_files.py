"""Branches on disk: only the slots that a branch owns, with a JSON description next to them.

DIR/branches.json          format, fingerprint of the model, per branch: tokens, text, shift, span, segments; SHA-256 of the
                           tensors' file and of the description itself
DIR/branches.safetensors   q<i>.b<j>.s<k>.k and .v, each [L, K, slots, H], in the cache's own dtype; for int8 caches also
                           .k_scale and .v_scale [L, K, 1, slots]

What a file says is checked before it is believed: a changed number would give other answers, and no error.  The hashes find
what cannot be seen in a number, such as another shift; files of earlier versions have none, and the rest is checked alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

import numpy as np
import safetensors
import safetensors.flax

from psynth_jax import foreign
from psynth_jax.branch import Branch, FinishReason, Segment
from psynth_jax.directories import replacing, writing
from psynth_jax.errors import CheckpointError, InputError, listing, shown
from psynth_jax.files import read_text, refuse_special, umask_mode
from psynth_jax.kv.transfer import StoredSlots, read_slots
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path
from psynth_jax.storage.staging import staged
from psynth_jax.unicode_text import checked_text

FORMAT = 1
_DESCRIPTION, _TENSORS = "branches.json", "branches.safetensors"
_NUMBERS = ("F32", "BF16", "F16")  # what safetensors calls the dtypes of caches; int8 has scales besides
_QUANTISED = "I8"
_INT32 = 2**31 - 1


class SavedBranches(NamedTuple):
    """What a directory holds.  questions: their branches.  batched: False for one question alone."""

    questions: Sequence[Sequence[Branch]]
    fingerprint: str
    batched: bool


def save(branches: SavedBranches, directory: str | AnyPath) -> None:
    """Write branches to a new or existing directory; an interrupted write leaves what was there before.

    Raises `InputError` when the directory holds something else than branches.
    """
    directory = _named(directory)
    tensors: dict[str, Any] = {}  # save_file is declared for jax arrays; it takes host ones too
    questions = []
    stored: dict[Segment, StoredSlots] = {}
    for group in branches.questions:
        for branch in group:
            stored |= {segment: _stored(segment) for segment in branch.segments}
    # int8 only if all of them are: a file has one number format.
    quantised = all(each.quantised for each in stored.values())
    for number, group in enumerate(branches.questions):
        described = []
        for index, branch in enumerate(group):
            lengths, positions = [], []
            for part, segment in enumerate(branch.segments):
                slots = stored[segment] if quantised else stored[segment].as_float32()
                for half, values in slots.arrays.items():
                    tensors[f"q{number}.b{index}.s{part}.{half}"] = values
                lengths.append(segment.length)
                positions.append(segment.position)
            entry = {
                "token_ids": list(branch.token_ids),
                "text": branch.text,
                "shift": branch.shift,
                "span": branch.span,
                "finish_reason": branch.finish_reason,
                "segments": lengths,
            }
            if positions != _one_after_another(lengths):
                entry["positions"] = positions
            described.append(entry)
        questions.append(described)
    description = {
        "format": FORMAT,
        "fingerprint": branches.fingerprint,
        "batched": branches.batched,
        "questions": questions,
    }
    guard = writing(directory) if isinstance(directory, BucketPath) else contextlib.nullcontext()
    with guard, replacing(directory, (_DESCRIPTION, _TENSORS), "a directory of branches") as fresh:
        with umask_mode(fresh / _TENSORS):
            safetensors.flax.save_file(tensors, str(fresh / _TENSORS))
        description["sha256"] = {"tensors": _sha256(fresh / _TENSORS), "description": _digest(description)}
        (fresh / _DESCRIPTION).write_text(json.dumps(description, ensure_ascii=False, indent=1), encoding="utf-8")


def load(directory: str | AnyPath) -> SavedBranches:
    """Read branches back, into host memory: whoever reads them copies them to a pool.

    Raises:
      InputError: no such directory.
      CheckpointError: a file is missing, truncated, changed or of another format, or says what cannot be.
    """
    source = _named(directory)
    if isinstance(source, BucketPath):
        source = staged(source, (_DESCRIPTION, _TENSORS))
    if not source.is_dir():
        raise InputError(f"no such directory: {source}")
    try:
        description = _parsed(read_text(source / _DESCRIPTION, CheckpointError))
        _require(isinstance(description, dict), "its description is no JSON object")
        if description.get("format") != FORMAT:
            found = shown(description.get("format"))
            raise CheckpointError(f"{source}: branches format {found}, this version reads format {FORMAT}")
        noted = _noted(description)
        if not (source / _TENSORS).exists():
            raise CheckpointError(f"{source} does not hold readable branches: it has no {_TENSORS}")
        _check_hashes(source, description)
        segments = _segments(source / _TENSORS, noted)
        questions = [[_branch(entry, segments) for entry in group] for group in noted]
    except (OSError, InputError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{source} does not hold readable branches: {foreign.reason(error)}") from None
    return SavedBranches(questions, description["fingerprint"], description["batched"])


def _named(directory: object) -> AnyPath:
    """Return a directory that a caller names.  Raises `InputError` for what is no path."""
    if not isinstance(directory, str | Path | BucketPath) or "\0" in str(directory):
        raise InputError(f"a directory of branches is named by a text or a path, not by {shown(directory)}")
    return as_path(directory)


def _require(fine: bool, wrong: str) -> None:
    if not fine:
        raise ValueError(wrong)


def _parsed(text: str) -> Any:
    """Read JSON without the numbers that JSON does not have, and without a key that is given twice."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        _require(len(found) == len(pairs), "a key is given twice")
        return found

    return json.loads(text, parse_constant=refuse, object_pairs_hook=once)


@dataclasses.dataclass(frozen=True)
class _Noted:
    """What the description says of a branch.

    name: of its tensors.  segments: slots of each.  positions: of the first slot of each.
    """

    name: str
    token_ids: tuple[int, ...]
    text: str
    shift: int
    span: int
    finish_reason: FinishReason
    segments: tuple[int, ...]
    positions: Sequence[int]


def _one_after_another(lengths: Sequence[int]) -> list[int]:
    """Return where segments begin that follow each other from position 0 on."""
    return [sum(lengths[:part]) for part in range(len(lengths))]


def _noted(description: Mapping[str, Any]) -> list[list[_Noted]]:
    """Check all that a description says, and return it branch by branch."""
    _keys(description, {"format", "fingerprint", "batched", "questions"}, {"sha256"}, "the description")
    checked_text(description["fingerprint"], "fingerprint")
    batched, questions = description["batched"], description["questions"]
    _require(type(batched) is bool, f"batched is {shown(batched)}, neither true nor false")
    _require(isinstance(questions, list) and bool(questions), "questions must be a list of at least one")
    _require(batched or len(questions) == 1, f"there are {len(questions)} questions, and batched is false")
    found = []
    for number, group in enumerate(questions):
        _require(isinstance(group, list), f"question {number} is no list of branches")
        found.append([_noted_branch(entry, f"q{number}.b{index}") for index, entry in enumerate(group)])
    return found


def _noted_branch(entry: Any, name: str) -> _Noted:
    _require(isinstance(entry, dict), f"{name} is no JSON object")
    _keys(entry, {"token_ids", "text", "shift", "span", "finish_reason", "segments"}, {"positions"}, name)
    token_ids = _whole_numbers(entry["token_ids"], 0, f"token_ids of {name}")
    segments = _whole_numbers(entry["segments"], 1, f"segments of {name}")
    positions: Sequence[int] = _one_after_another(segments)
    if "positions" in entry:
        positions = _whole_numbers(entry["positions"], -1, f"positions of {name}")
        _require(len(positions) == len(segments), f"{name} has {len(positions)} positions for {len(segments)} segments")
    shift, span = _whole_numbers([entry["shift"], entry["span"]], 0, f"shift and span of {name}")
    reason = entry["finish_reason"]
    _require(reason in get_args(FinishReason), f"finish_reason of {name} is {shown(reason)}")
    cached = sum(segments)
    _require(cached == len(token_ids), f"{name} has {cached} cached slots and {len(token_ids)} token ids")
    # What was written in several turns may have had other tokens between them, whose positions it spans.
    spans = span >= cached if len(segments) > 1 else span == cached
    _require(spans, f"{name} has {len(token_ids)} token ids and a span of {span}")
    _require(shift + span <= _INT32, f"shift and span of {name} pass {_INT32}")
    text = checked_text(entry["text"], f"text of {name}")
    return _Noted(name, token_ids, text, shift, span, reason, segments, positions)


def _keys(entry: Mapping[str, Any], needed: set[str], allowed: set[str], what: str) -> None:
    missing, extra = sorted(needed - entry.keys()), sorted(entry.keys() - needed - allowed)
    _require(not missing, f"{what} has no {', '.join(missing)}")
    _require(not extra, f"{what} has what this version does not know: {listing([shown(key) for key in extra], ', ')}")


def _whole_numbers(values: Any, least: int, what: str) -> tuple[int, ...]:
    _require(isinstance(values, list), f"{what} must be a list, not {shown(values)}")
    for value in values:
        fine = type(value) is int and least <= value <= _INT32  # a bool is no number here, nor is 3.0
        _require(fine, f"{what} must be whole numbers from {least} to {_INT32}, not {shown(value)}")
    return tuple(values)


def _check_hashes(source: Path, description: Mapping[str, Any]) -> None:
    """Compare both files with the hashes that were written with them, where there are any."""
    refuse_special(source / _TENSORS, CheckpointError)
    if "sha256" not in description:
        return
    hashes = description["sha256"]
    expected = {"tensors": _sha256(source / _TENSORS), "description": _digest(description)}
    _require(isinstance(hashes, dict), "sha256 must be a JSON object")
    _keys(hashes, set(expected), set(), "sha256")
    for name, file in (("tensors", _TENSORS), ("description", _DESCRIPTION)):
        _require(hashes[name] == expected[name], f"{file} was changed after it was written: its SHA-256 differs")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _digest(description: Mapping[str, Any]) -> str:
    """Return a hash of all that a description says but the hashes."""
    content = {name: value for name, value in description.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stored(segment: Segment) -> StoredSlots:
    """Return the slots of a segment in host memory."""
    return segment.held if isinstance(segment.held, StoredSlots) else read_slots(segment.held)


def _segments(file: Path, noted: list[list[_Noted]]) -> dict[str, StoredSlots]:
    """Read the tensors of all branches; return what each segment has, by name."""
    lengths = {}
    for group in noted:
        for branch in group:
            for part, length in enumerate(branch.segments):
                lengths[f"{branch.name}.s{part}"] = length
    halves = _checked_header(file, lengths)
    if not lengths:  # every branch is empty: there is nothing to cache
        return {}
    tensors = safetensors.flax.load_file(str(file))
    segments = {}
    for name in lengths:
        arrays = {half: np.asarray(tensors[f"{name}.{half}"]) for half in halves}
        for half, values in arrays.items():
            _require(bool(np.isfinite(values).all()), f"{name}.{half} holds NaN or infinities")
        segments[name] = StoredSlots(arrays)
    return segments


def _checked_header(file: Path, lengths: Mapping[str, int]) -> tuple[str, ...]:
    """Check names, dtypes and shapes of all tensors before any is read; return what each segment has a tensor of."""
    with safetensors.safe_open(str(file), framework="numpy") as opened:
        header = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
        found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in header.items()}
    quantised = any(name.endswith("_scale") for name in found)
    halves = ("k", "v", "k_scale", "v_scale") if quantised else ("k", "v")
    expected = {f"{name}.{half}" for name in lengths for half in halves}
    missing, extra = sorted(expected - found.keys()), sorted(found.keys() - expected)
    _require(not missing, f"missing tensors: {listing(missing, ', ')}")
    _require(not extra, f"tensors that no branch has: {listing([shown(key) for key in extra], ', ')}")
    if not lengths:
        return halves
    kind, first = found[f"{next(iter(lengths))}.k"]
    _require(kind == _QUANTISED if quantised else kind in _NUMBERS, f"keys and values are {kind}, which no cache is")
    _require(len(first) == 4 and math.prod(first) > 0, f"keys have shape {list(first)}, not [L, K, slots, H]")
    layers, heads, _, width = first
    for name, length in lengths.items():
        for half in halves:
            right = (kind, (layers, heads, length, width))  # L, K, S, H
            if half.endswith("_scale"):
                right = ("F32", (layers, heads, 1, length))
            dtype, shape = found[f"{name}.{half}"]
            _require((dtype, shape) == right, f"{name}.{half} is {dtype} {list(shape)}, not {right[0]} {list(right[1])}")
    return halves


def _branch(noted: _Noted, stored: Mapping[str, StoredSlots]) -> Branch:
    segments = []
    for part, position in enumerate(noted.positions):
        segments.append(Segment(stored[f"{noted.name}.s{part}"], position))
    return Branch(noted.token_ids, noted.text, noted.shift, noted.span, tuple(segments), noted.finish_reason)
