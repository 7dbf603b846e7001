"""How far a conversion is, told to the logger `psynth_jax.progress`: the command shows what it says."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

from psynth_jax.axes import HostArray
from psynth_jax.convert.stream import Tensor

_LOGGER = logging.getLogger("psynth_jax.progress")


def tell(what: str) -> None:
    """Say what is done now."""
    _LOGGER.info("%s", what)


def counted(tensors: Sequence[Tensor], what: str) -> list[Tensor]:
    """Return the same tensors; reading one says how many bytes of all have been read."""
    total, done = sum(tensor.size for tensor in tensors), 0

    def count(tensor: Tensor) -> Callable[[], HostArray]:
        def read() -> HostArray:
            nonlocal done
            values = tensor.read()
            done += tensor.size
            tell(f"{what}: {done / 1e9:,.2f} of {total / 1e9:,.2f} GB")
            return values

        return read

    return [dataclasses.replace(tensor, read=count(tensor)) for tensor in tensors]
