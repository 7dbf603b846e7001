"""Numbers of an adapter that are not finite are refused where they are read, made or rounded, by the tensor's name."""

from __future__ import annotations

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.convert import finite
from psynth_jax.errors import AdapterError
from psynth_jax.storage.paths import AnyPath


def refuse_not_finite(file: str | AnyPath, name: str, values: HostArray) -> None:
    """Raise `AdapterError`, naming file, tensor and place, for NaN and infinities."""
    finite.refuse_not_finite(file, name, values, AdapterError)


def rounded(where: str | AnyPath, name: str, values: HostArray, dtype: np.dtype | None) -> HostArray:
    """Return numbers in another dtype; None leaves them as they are.

    Raises `AdapterError`, naming the tensor, for those that the dtype cannot hold.
    """
    array = np.asarray(values)
    if dtype is None or array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(dtype)
    if not np.isfinite(made).all():
        largest = float(np.abs(array.astype(np.float64)).max())
        raise AdapterError(
            f"{where}: {name} has numbers up to {largest:.3g}, which {np.dtype(dtype).name} cannot represent; "
            "use bfloat16 or float32"
        )
    return made
