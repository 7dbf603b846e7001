"""Stored numbers that are none: NaN and infinities are named when a tensor is read."""

from __future__ import annotations

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.errors import CheckpointError, UserError

_BLOCK = 1 << 18  # numbers that are looked at together: they and what is made of them stay in the cache of a core

# Of a float's bits, without its sign, those from here on are infinity and NaN.
_EXPONENTS = {
    "float32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "float16": (np.uint16, 0x7FFF, 0x7C00),
    "bfloat16": (np.uint16, 0x7FFF, 0x7F80),
}


def is_finite(values: HostArray) -> bool:
    """Whether an array has neither NaN nor infinities.  Reads it once, and makes no array of its size."""
    known = _EXPONENTS.get(values.dtype.name)
    if known is None:
        return bool(np.isfinite(values).all())
    kind, without_sign, infinity = known
    bits = np.ascontiguousarray(values).reshape(-1).view(kind)
    for first in range(0, bits.size, _BLOCK):
        block = bits[first : first + _BLOCK] & kind(without_sign)
        if block.max() >= infinity:
            return False
    return True


def refuse_not_finite(where: object, name: str, values: HostArray, error: type[UserError] = CheckpointError) -> None:
    """Raise `error` for a tensor with NaN or infinities, naming the file, the tensor and its first bad place."""
    if is_finite(values):
        return
    bad = ~np.isfinite(values)
    place = [int(axis) for axis in np.unravel_index(np.argmax(bad), bad.shape)]
    count = int(bad.sum())
    number = float(values[tuple(place)])
    numbers = "1 number is" if count == 1 else f"{count} numbers are"
    raise error(f"{where}: {name} is damaged: {numbers} not finite, the first is {number} at {place}")


def refuse_overflow(where: object, name: str, values: HostArray) -> None:
    """Raise `CheckpointError` for a tensor of finite numbers, some of which became infinite in the dtype of `values`."""
    if not is_finite(values):
        dtype = values.dtype.name
        better = "bfloat16 or float32" if dtype == "float16" else "float32"
        raise CheckpointError(f"{where}: {name} holds values that {dtype} cannot represent; load as {better}")
