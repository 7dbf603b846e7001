"""One file of a checkpoint: safetensors, of which single tensors or pieces of them are read, or a JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from psynth_jax import foreign
from psynth_jax.axes import HostArray
from psynth_jax.errors import CheckpointError
from psynth_jax.files import is_lfs_pointer, refuse_special, umask_mode
from psynth_jax.storage.paths import AnyPath

_PIECE_BYTES = 64 << 20  # the most that is read of an open file
_FLOATS = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}


class SafetensorsFile:
    """The header of one file; its numbers are read tensor by tensor.

    The file is opened for one tensor at a time, and for pieces of a large one: what has been read of an open file stays in
    memory next to the copy.
    """

    def __init__(self, path: Path):
        """Read the header.  Raises `CheckpointError` for a file that is absent, truncated or no safetensors file."""
        self.path = path
        self.problems: list[str] = []
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, np.dtype] = {}
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                part = file.get_slice(name)
                kind = part.get_dtype()
                if kind in _FLOATS:
                    dtypes[name] = _FLOATS[kind]
                else:
                    self.problems.append(f"{name} has dtype {kind}, expected one of {', '.join(_FLOATS)}")
                shapes[name] = tuple(part.get_shape())
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        self.dtypes: Mapping[str, np.dtype] = dtypes

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read one tensor in the dtype it is stored in, or only a piece of it."""
        shape, dtype = self.shapes[name], self.dtypes[name]
        if not shape:
            return self._read(name, ())
        ranges = [range(*part.indices(size)) for part, size in zip(index or (slice(None),) * len(shape), shape, strict=True)]
        sizes = [len(part) for part in ranges]
        rows = max(_PIECE_BYTES // max(math.prod(sizes[1:]) * dtype.itemsize, 1), 1)
        if sizes[0] <= rows:
            return self._read(name, index)
        first, whole = ranges[0].start, np.empty(sizes, dtype)
        for row in range(0, sizes[0], rows):
            end = min(row + rows, sizes[0])
            whole[row:end] = self._read(name, (slice(first + row, first + end), *index[1:]))
        return whole

    def pick(self, name: str, places: tuple[HostArray, ...]) -> HostArray:
        """Read single elements of a tensor, an index array for each axis, with the file opened once."""
        found = []
        with _open(self.path) as file:
            part = file.get_slice(name)
            for place in zip(*places, strict=True):
                index = tuple(slice(int(at), int(at) + 1) for at in place)
                found.append(part[index].reshape(1))
        return np.concatenate(found)

    def _read(self, name: str, index: tuple[slice, ...]) -> HostArray:
        with _open(self.path) as file:
            return np.asarray(file.get_slice(name)[index] if index else file.get_tensor(name))


def _open(path: Path) -> Any:
    refuse_special(path, CheckpointError)
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}")
    with foreign.reading(path, "safetensors"):
        return safetensors.safe_open(str(path), framework="np")


def refuse_pointer(path: Path) -> None:
    """Raise `CheckpointError` for a file that only says where Git LFS keeps the real one."""
    if is_lfs_pointer(path):
        raise CheckpointError(foreign.lfs_pointer(path))


def write_safetensors(path: Path, tensors: Mapping[str, HostArray], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a file whose mode is what the umask says; safetensors itself makes it 600."""
    with umask_mode(path):
        safetensors.numpy.save_file(dict(tensors), path, metadata=metadata)


def read_json(path: AnyPath, finite: bool = True) -> dict[str, Any]:
    """Read a JSON object.

    Args:
      finite: refuse NaN and infinities, which Python's reader takes though JSON has none.

    Raises `CheckpointError` naming the file when it is absent, is no regular file, or is not a JSON object.
    """
    refuse_special(path, CheckpointError)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not a UTF-8 text file") from None
    with foreign.reading(path, "json"):
        value = json.loads(text)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    if finite and (key := _not_finite(value)) is not None:
        raise CheckpointError(f"{path}: {key} is not a finite number")
    return value


def _not_finite(value: Mapping[str, Any]) -> str | None:
    """Return the key of a number in nested JSON values that is NaN or infinite; None: all are finite."""
    left: list[tuple[str, Any]] = list(value.items())
    while left:
        key, item = left.pop()
        if isinstance(item, dict):
            left += [(f"{key}.{inner}", nested) for inner, nested in item.items()]
        elif isinstance(item, list):
            left += [(key, nested) for nested in item]
        elif isinstance(item, float) and not math.isfinite(item):
            return key
    return None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as transformers does: two spaces, a newline at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
