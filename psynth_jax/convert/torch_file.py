"""A file of `torch.save` that holds a dict of tensors, read and written without torch and without running anything.

Such a file is a zip archive: `data.pkl`, a pickle in which every tensor is a call of `_rebuild_tensor_v2` on a storage, and
one member `data/<key>` of raw numbers per storage.  A pickle can name any function and call it, so this reader knows seven
names, all of them stand-ins of its own, and refuses every other.  What it returns are NumPy arrays.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.convert.safetensors_file import refuse_pointer
from psynth_jax.errors import CheckpointError
from psynth_jax.files import refuse_special
from psynth_jax.foreign import reason

# What a pickle or an archive whose bytes make no sense ends in.
_DAMAGE = (
    *(pickle.UnpicklingError, zlib.error, struct.error, EOFError, LookupError, ValueError, TypeError, AttributeError),
    *(ArithmeticError, MemoryError, RuntimeError, OSError),
)
MOST_BYTES = 64 << 20  # of all members together: such files hold small things, large ones are safetensors
_MOST_PICKLE = 1 << 16
_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}


_OPCODES = (
    *("PROTO", "FRAME", "STOP", "GLOBAL", "STACK_GLOBAL", "REDUCE", "MARK", "EMPTY_DICT", "EMPTY_TUPLE", "BINPERSID"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE"),
)


class _StandIn:
    """What a name of the pickle means here.  It has no state, so that a pickle cannot change it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


class _RebuildTensor(_StandIn):
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> HostArray:
        """Return the view that `torch._utils._rebuild_tensor_v2` makes, after checking that it lies inside its storage."""
        whole = [offset, *size, *stride]
        if (
            not isinstance(storage, np.ndarray)
            or not all(type(x) is int and x >= 0 for x in whole)
            or len(size) != len(stride)
        ):
            raise pickle.UnpicklingError("a tensor is described wrongly")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if (0 not in size and last >= storage.size) or math.prod(size) > storage.size:
            raise pickle.UnpicklingError("a tensor reaches beyond its storage")
        strides = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False).copy()


class _RebuildParameter(_StandIn):
    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _Storage(_StandIn):
    """One of torch's storage classes: a dtype."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


class _EmptyDict(_StandIn):
    __slots__ = ()

    def __call__(self, *arguments: Any) -> dict[str, Any]:
        if arguments:
            raise pickle.UnpicklingError("an OrderedDict is made from something")
        return {}  # which keeps its order, too


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, whose table of opcodes is cut to those that a dict of tensors needs.

    (The one in C cannot be cut, and allots its memo by the largest number that a pickle names.)
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if bytes([code]) in {getattr(pickle, name) for name in _OPCODES}
    }

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, HostArray] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in of a name that a dict of tensors needs."""
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _EmptyDict(),
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
            **{("torch", storage): _Storage(dtype) for storage, dtype in _STORAGES.items()},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a dict of tensors does not need")
        return known[module, name]

    def persistent_load(self, pid: Any) -> HostArray:
        """Read a storage, once."""
        match pid:
            case ("storage", _Storage() as kind, str() as key, _, int() as count) if key.isalnum():
                if key not in self._storages:
                    self._storages[key] = np.frombuffer(self._archive.read(f"{self._folder}/data/{key}"), kind.dtype)
                numbers = self._storages[key]
                if numbers.size < count or numbers.dtype != kind.dtype:
                    raise pickle.UnpicklingError(f"storage {key} has {numbers.size} numbers, {count} are declared")
                return numbers[:count]
        raise pickle.UnpicklingError("a storage is described wrongly")

    def load_setitems(self) -> None:
        """Put items into a dict, under texts only: hashing what a pickle nests can take forever."""
        items = self.pop_mark()  # type: ignore[attr-defined]
        self._put(items[::2], items[1::2])

    def load_setitem(self) -> None:
        """Put one item into a dict."""
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._put([key], [value])

    def _put(self, keys: list[Any], values: list[Any]) -> None:
        target = self.stack[-1]  # type: ignore[attr-defined]
        if type(target) is not dict or any(type(key) is not str for key in keys):
            raise pickle.UnpicklingError("a dict has keys that are no texts")
        for key, value in zip(keys, values, strict=True):
            target[key] = value

    def load_build(self) -> None:
        """Forget what state an object is to get: torch notes versions there."""
        self.stack.pop()  # type: ignore[attr-defined]

    dispatch |= {pickle.SETITEMS[0]: load_setitems, pickle.SETITEM[0]: load_setitem, pickle.BUILD[0]: load_build}


def read_torch_file(path: Path) -> dict[str, HostArray]:
    """Read a dict of tensors.  bfloat16 comes as `ml_dtypes.bfloat16`.

    Raises `CheckpointError`, naming the file, when it is absent, no such archive, damaged, or holds anything but tensors.
    """
    refuse_special(path, CheckpointError)
    refuse_pointer(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}") from None
    except zipfile.BadZipFile:
        raise CheckpointError(
            f"{path} is not a whole file of torch.save (a zip archive); save it anew with torch 1.6 or later"
        ) from None
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is refused, nothing of it was run: {reason(error)}") from None


def _read(archive: zipfile.ZipFile) -> dict[str, HostArray]:
    members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or len(members) != len(archive.infolist()):
        raise ValueError("it is not laid out as torch.save does it")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise ValueError("it is compressed, which torch.save does not do")
    if sum(member.file_size for member in members.values()) > MOST_BYTES or members[pickles[0]].file_size > _MOST_PICKLE:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB; large tensors belong into safetensors")
    folder = pickles[0].removesuffix("/data.pkl")
    if f"{folder}/byteorder" in members and archive.read(f"{folder}/byteorder") != b"little":
        raise ValueError("its numbers are big-endian")
    found = _Unpickler(archive, folder).load()
    if type(found) is not dict or any(type(value) is not np.ndarray for value in found.values()):
        raise ValueError("it holds something else than a dict of tensors")
    if sum(value.nbytes for value in found.values()) > MOST_BYTES:
        raise ValueError("its tensors are views of each other, and together larger than the file may be")
    return found


def write_torch_file(path: Path, tensors: Mapping[str, HostArray]) -> None:
    """Write float32 tensors so that `torch.load(path, weights_only=True)` returns them as an OrderedDict."""
    arrays = {name: np.array(array, np.float32, order="C") for name, array in tensors.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _pickled(arrays))
        archive.writestr("archive/byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{key}", array.astype("<f4").tobytes())
        archive.writestr("archive/version", b"3\n")


def _pickled(arrays: Mapping[str, HostArray]) -> bytes:
    """Spell the pickle out, opcode by opcode: a pickler would have to import torch to name its functions."""
    empty_dict = pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    items = b"".join(_text(name) + _tensor(str(key), array, empty_dict) for key, (name, array) in enumerate(arrays.items()))
    return pickle.PROTO + b"\x02" + empty_dict + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _tensor(key: str, array: HostArray, empty_dict: bytes) -> bytes:
    storage = _tuple(_text("storage"), pickle.GLOBAL + b"torch\nFloatStorage\n", _text(key), _text("cpu"), _int(array.size))
    stride = (step // array.itemsize for step in array.strides)
    size, step = _tuple(*map(_int, array.shape)), _tuple(*map(_int, stride))
    called = _tuple(storage + pickle.BINPERSID, _int(0), size, step, pickle.NEWFALSE, empty_dict)
    return pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + called + pickle.REDUCE


def _text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _int(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
