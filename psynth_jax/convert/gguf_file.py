"""GGUF files as bytes: header and metadata, the parts of a split file, and tensors, dequantised.

    magic "GGUF" | version | tensor count | metadata count
    metadata     key, type, value                                      (count times)
    tensors      name, sizes (innermost first), quantisation, offset   (count times)
    padding to general.alignment | data of all tensors, each padded, in the same order

The header is walked here rather than by the gguf package, which builds several Python objects for every token of the
vocabulary.  A length is compared with what is left of the file before anything of that length is read.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.convert.rules import FLOAT32
from psynth_jax.errors import CheckpointError, UserError, listing
from psynth_jax.files import refuse_special
from psynth_jax.gguf_metadata import Metadata

_VERSIONS = (2, 3)
_ALIGNMENT, _SPLIT = "general.alignment", "split."
_LARGEST_DIMENSIONS = 4
_DEEPEST_ARRAY = 4
_LONGEST_NAME = 128  # of a tensor; llama.cpp allows half as much
_PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)

_STRING, _ARRAY, _BOOL, _FLOAT32 = 8, 9, 7, 6
_SCALARS: dict[int, np.dtype] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    _FLOAT32: np.dtype("<f4"),
    _BOOL: np.dtype("<u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class _Incomplete(ValueError):
    """The bytes run out, or make no sense."""


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies: shape outermost axis first; first: its first byte, counted from the file's."""

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    first: int
    size: int


class _Part:
    """One file: metadata and tensors.  The data stay on disk (memory-mapped)."""

    def __init__(self, path: Path):
        """Read the header.  Raises `CheckpointError` for what is no complete GGUF file."""
        self.path = path
        refuse_special(path, CheckpointError)
        try:
            if path.stat().st_size == 0:
                raise _Incomplete("it is empty")
            self.data = np.memmap(path, np.uint8, mode="r")
            header = _Header(memoryview(self.data))
            self.metadata = Metadata(header.metadata(), path)
            alignment = self.metadata.count(_ALIGNMENT, 32)
            if alignment & (alignment - 1):
                raise self.metadata.wrong(_ALIGNMENT, "a power of 2")
            self.tensors = header.tensors(alignment)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
        except UserError:
            raise
        except ValueError as error:  # a path with a zero byte among them
            raise CheckpointError(f"{path} is not a complete GGUF file: {error}") from None

    def read(self, name: str, index: tuple[slice, ...]) -> HostArray:
        """See `GGUFFile.read`."""
        tensor = self.tensors[name]
        stored = self.data[tensor.first : tensor.first + tensor.size]
        block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
        # What is quantised together lies within a row, so rows can be cut before they are dequantised.
        row_bytes = tensor.shape[-1] // block * block_bytes if tensor.shape else block_bytes
        stored = stored.reshape(*tensor.shape[:-1], row_bytes)
        rows = index[:1] if len(index) > 1 else ()
        try:
            values = gguf.quants.dequantize(stored[rows], tensor.kind)
        except NotImplementedError:  # how the gguf package says that it does not know a quantisation
            raise CheckpointError(
                f"{name} in {self.path} is quantised as {tensor.kind.name}, which cannot be read"
            ) from None
        rest = (slice(None),) * len(rows) + index[len(rows) :]
        return np.asarray(values[rest], np.float32)


class _Header:
    """A walk over the header's bytes, from the first one on."""

    def __init__(self, data: memoryview):
        self._data, self._at = data, 0
        if bytes(self._take(4)) != b"GGUF":
            raise _Incomplete("it does not begin with GGUF")
        version = self._u32()
        if version not in _VERSIONS:
            known = " and ".join(map(str, _VERSIONS))
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "it is big-endian" if swapped in _VERSIONS else f"it has version {version}"
            raise _Incomplete(f"{what}; little-endian files of versions {known} are read")
        self._tensor_count, self._metadata_count = self._u64(), self._u64()

    def metadata(self) -> dict[str, Any]:
        """Read all metadata.  Call it before `tensors`."""
        found: dict[str, Any] = {}
        for _ in range(self._metadata_count):
            key = self._text("a metadata key")
            if key in found:
                raise _Incomplete(f"metadata {key!r} is there twice")
            found[key] = self._value(self._u32(), f"metadata {key!r}")
        return found

    def tensors(self, alignment: int) -> dict[str, _Tensor]:
        """Read where all tensors lie, and check that the file holds every one of them whole."""
        found: dict[str, tuple[tuple[int, ...], gguf.GGMLQuantizationType, int]] = {}
        for _ in range(self._tensor_count):
            name = self._text("a tensor's name")
            if not name.isprintable() or len(name) > _LONGEST_NAME:
                raise _Incomplete(f"a tensor is called {name[:_LONGEST_NAME]!r}")
            if name in found:
                raise _Incomplete(f"tensor {name!r} is there twice")
            found[name] = self._tensor(name)
        start, end, placed = self._padded(self._at, alignment), 0, {}
        for name, (shape, kind, offset) in found.items():
            # llama.cpp wants every tensor just behind the one before; elsewhere are another one's numbers.
            if offset != end:
                raise _Incomplete(f"tensor {name!r} begins at byte {offset} of the data, expected {end}")
            size = _size_in_bytes(name, shape, kind)
            if start + offset + size > len(self._data):
                raise _Incomplete(f"it ends within tensor {name!r}")
            placed[name] = _Tensor(shape, kind, start + offset, size)
            end = self._padded(offset + size, alignment)
        if len(self._data) > start + end:
            # A count that is too small: the last tensors would be absent, and all others begin too early.
            raise _Incomplete(f"{len(self._data) - start - end} bytes behind its last tensor belong to none")
        return placed

    def _tensor(self, name: str) -> tuple[tuple[int, ...], gguf.GGMLQuantizationType, int]:
        dimensions = self._u32()
        if not 1 <= dimensions <= _LARGEST_DIMENSIONS:
            raise _Incomplete(f"tensor {name!r} has {dimensions} dimensions, expected 1 to {_LARGEST_DIMENSIONS}")
        sizes = [self._u64() for _ in range(dimensions)]
        number, offset = self._u32(), self._u64()
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError:
            raise _Incomplete(f"tensor {name!r} has quantisation {number}, which is unknown") from None
        return tuple(reversed(sizes)), kind, offset

    def _value(self, kind: int, where: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._text(where)
        if kind == _ARRAY:
            return self._array(where, depth)
        if kind not in _SCALARS:
            raise _Incomplete(f"{where} has type {kind}, which is unknown")
        dtype = _SCALARS[kind]
        return _plain(np.frombuffer(self._take(dtype.itemsize), dtype), kind, where)[0]

    def _array(self, where: str, depth: int) -> list[Any]:
        if depth == _DEEPEST_ARRAY:
            raise _Incomplete(f"{where} is an array of arrays of arrays")
        kind, count = self._u32(), self._u64()
        if kind in _SCALARS:
            dtype = _SCALARS[kind]
            return _plain(np.frombuffer(self._take(count * dtype.itemsize), dtype), kind, where)
        if kind == _STRING:
            return self._texts(count, where)
        if kind != _ARRAY:
            raise _Incomplete(f"{where} has items of type {kind}, which is unknown")
        if count * 12 > self._left:  # an item has a type and a length
            raise _Incomplete(f"it ends within {where}")
        return [self._array(where, depth + 1) for _ in range(count)]

    def _texts(self, count: int, where: str) -> list[str]:
        """Read an array of texts: the loop over a vocabulary, so it calls nothing but what it must."""
        if count * _U64.size > self._left:
            raise _Incomplete(f"it ends within {where}")
        data, at, found, end = self._data, self._at, [], len(self._data)
        unpack = _U64.unpack_from
        try:
            for _ in range(count):
                (length,) = unpack(data, at)
                at += _U64.size
                if length > end - at:
                    raise _Incomplete(f"it ends within {where}")
                found.append(str(data[at : at + length], "utf-8"))
                at += length
        except struct.error:
            raise _Incomplete(f"it ends within {where}") from None
        except UnicodeDecodeError:
            raise _Incomplete(f"item {len(found)} of {where} is not UTF-8") from None
        self._at = at
        return found

    def _text(self, where: str) -> str:
        try:
            return str(self._take(self._u64()), "utf-8")
        except UnicodeDecodeError:
            raise _Incomplete(f"{where} is not UTF-8") from None

    def _u32(self) -> int:
        return _U32.unpack(self._take(4))[0]

    def _u64(self) -> int:
        return _U64.unpack(self._take(8))[0]

    def _take(self, length: int) -> memoryview:
        if length > self._left:
            raise _Incomplete("it ends within its header")
        taken = self._data[self._at : self._at + length]
        self._at += length
        return taken

    @property
    def _left(self) -> int:
        return len(self._data) - self._at

    @staticmethod
    def _padded(offset: int, alignment: int) -> int:
        return -(-offset // alignment) * alignment


def _plain(values: np.ndarray, kind: int, where: str) -> list[Any]:
    """Return Python values; float32 as the shortest decimal that rounds to it (1e-05, not 9.99e-06)."""
    if kind == _BOOL:
        if values.size and values.max() > 1:
            raise _Incomplete(f"{where} is neither true nor false")
        return values.astype(bool).tolist()
    if kind == _FLOAT32:
        return [float(str(value)) for value in values] if values.size < 64 else values.tolist()
    return values.tolist()


def _size_in_bytes(name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise _Incomplete(f"tensor {name!r} has rows of {shape[-1]}, not a multiple of {kind.name}'s {block}")
    return math.prod(shape) // block * block_bytes


class GGUFFile:
    """A model in one open GGUF file, or in all parts of a split one, as a `rules.TensorSource` with metadata."""

    def __init__(self, path: str | Path):
        """Read the headers; of a split file, any part may be named, and the others must lie next to it.

        Raises `CheckpointError` for a file that is absent, truncated or not GGUF, and names the parts that are missing.
        """
        self.path = Path(path)
        parts = _with_other_parts(_Part(self.path))
        self.values = Metadata(parts[0].metadata, parts[0].path)
        self._part_of: dict[str, _Part] = {}
        for part in parts:
            for name in part.tensors:
                if name in self._part_of:
                    other = self._part_of[name].path.name
                    raise CheckpointError(f"{part.path}: tensor {name} is in {other} too")
                self._part_of[name] = part
        declared = self.values.count(f"{_SPLIT}tensors.count", None, least=0)
        if declared is not None and declared != len(self._part_of):
            raise CheckpointError(f"{self.path}: {len(self._part_of)} tensors, but {_SPLIT}tensors.count says {declared}")

    def tokenizer_metadata(self) -> Metadata:
        """Return what the file says about its tokenizer, `tokenizer.Tokenizer.from_gguf`'s input; empty: nothing."""
        if not any(key.startswith("tokenizer.") for key in self.values):
            return Metadata({}, self.values.where)
        return self.values.only("tokenizer.", "general.architecture")

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of every tensor, outermost axis first."""
        return {name: part.tensors[name].shape for name, part in self._part_of.items()}

    def dtype(self, name: str) -> np.dtype:
        """Return float32: what a quantised tensor becomes."""
        return FLOAT32

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Dequantise one tensor to float32, or only the rows of a piece of it, and return the piece.

        Raises `CheckpointError` for a quantisation that cannot be read.
        """
        return self._part_of[name].read(name, index)


def _with_other_parts(named: _Part) -> Sequence[_Part]:
    """Return all parts of the model that a file belongs to, in order."""
    count = named.metadata.count(f"{_SPLIT}count", 1, least=0, most=99_999)
    parsed = _PART.fullmatch(named.path.name)
    if count <= 1:
        if parsed is not None and int(parsed["count"]) > 1:
            raise CheckpointError(
                f"{named.path} is called part {int(parsed['number'])} of {int(parsed['count'])}, "
                f"but its metadata {_SPLIT}count say no such thing; if it is the whole model, rename it"
            )
        return [named]
    number = named.metadata.count(f"{_SPLIT}no", least=0, most=count - 1) + 1
    if parsed is None or (int(parsed["number"]), int(parsed["count"])) != (number, count):
        raise CheckpointError(
            f"{named.path} is part {number} of {count} of a model, so its name must end in "
            f"-{number:05}-of-{count:05}.gguf, and the other parts must lie next to it"
        )
    paths = [named.path.with_name(f"{parsed['name']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise CheckpointError(
            f"{named.path} is part {number} of {count}; {named.path.parent} lacks {listing(missing, ', ')}"
        )
    parts = [named if i == number - 1 else _Part(path) for i, path in enumerate(paths)]
    for i, part in enumerate(parts):
        _check_belongs(part, i, named)
    return parts


def _check_belongs(part: _Part, number: int, named: _Part) -> None:
    """Raise `CheckpointError` for a part of another model, or of the same one split in another way."""
    if part.metadata.count(f"{_SPLIT}no", least=0) != number:
        raise CheckpointError(f"{part.path} is called part {number + 1}; its metadata {_SPLIT}no say another")
    for key in (f"{_SPLIT}count", f"{_SPLIT}tensors.count", "general.architecture"):
        here, there = part.metadata.get(key), named.metadata.get(key)
        if here != there and not (key.startswith("general.") and None in (here, there)):
            raise CheckpointError(f"{part.path} and {named.path.name} are not parts of one model: {key} differs")
