"""TPU slices by Google's accelerator types, as devices to compile for: no TPU is needed, libtpu is.

    v5e-16   16 chips, 4 x 4          v5p-64   64 cores, so 32 chips, 2 x 4 x 4          v6e-8   8 chips, 2 x 4

Chip facts are those of Google's public documentation (cloud.google.com/tpu/docs), of dense bfloat16, per JAX device.
Knows no model and no program.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

from psynth_jax.errors import UserError, shown

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device of a kind has: bytes of memory, bytes/s from it, bfloat16 FLOP/s.

    counted: units of the number in an accelerator type that make a chip.  axes: dimensions of a slice.  devices: JAX
    devices of a chip.
    """

    hbm_bytes: int
    bandwidth: float
    flops: float
    counted: int
    axes: int
    devices: int = 1


CHIPS = {
    "v5e": Chip(16 * GIB, 819e9, 197e12, counted=1, axes=2),
    "v5p": Chip(95 * GIB, 2765e9, 459e12, counted=2, axes=3),
    "v6e": Chip(32 * GIB, 1640e9, 918e12, counted=1, axes=2),
    "tpu7x": Chip(96 * GIB, 3690e9, 1153.5e12, counted=2, axes=3, devices=2),
}
_NAME = re.compile(r"(v5e|v5litepod|v5p|v6e|tpu7x)-(\d{1,6})", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice: its accelerator type, kind of chip, and chips along each axis."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """What one of its devices has."""
        return CHIPS[self.kind]

    def devices(self) -> Sequence[Any]:
        """Return the devices to lower and compile for.  Raises `UserError` without libtpu, or for what it does not know."""
        if importlib.util.find_spec("libtpu") is None:
            raise UserError("compiling for TPUs needs libtpu: pip install libtpu")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU machine to ask
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        from jax.experimental import topologies

        try:
            name = f"{self.kind}:{'x'.join(map(str, self.shape))}"
            # A host has 2 x 2 chips, or all of a smaller slice.
            host = (*(min(chips, 2) for chips in self.shape[:2]), 1)
            return topologies.get_topology_desc(name, platform="tpu", chips_per_host_bounds=host).devices
        except (RuntimeError, ValueError) as error:
            raise UserError(f"libtpu does not describe {self.name}: {' '.join(str(error).split())[:200]}") from None


def tpu_slice(name: str) -> Slice:
    """Read an accelerator type, such as "v5e-16".  Raises `UserError` saying which there are."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(
            f"{shown(name)} is no accelerator type: use a kind of {', '.join(CHIPS)} and a number, such as v5e-16"
        )
    kind = found[1].replace("v5litepod", "v5e")
    chip, number = CHIPS[kind], int(found[2])
    chips = number // chip.counted
    if number % chip.counted or chips < 1 or chips & (chips - 1):
        unit = "chips" if chip.counted == 1 else f"cores, {chip.counted} a chip"
        raise UserError(f"{name}: the number counts {unit}, and the chips must be a power of two")
    shape = [1] * chip.axes
    for _ in range(chips.bit_length() - 1):
        shape[shape.index(min(shape))] *= 2  # as square as it gets
    # Four chips lie in a plane, 2 x 2 x 1; larger slices are named from their shortest axis on.
    return Slice(name, kind, tuple(sorted(shape, reverse=min(shape) == 1)))
