"""How the GPU kernels cut their work: heuristics that always have an answer, fed by what the device says of itself.

Triton wants powers of two, and 16 rows at least on each side of a matrix product.  Shared memory holds a query block and
`stages` blocks of keys and values; that the stages' copies run ahead of the arithmetic is what hides the memory's latency.
Estimates are upper bounds: a call that does not fit fails to compile, one that uses less only waits a little more.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import jax

CORES = 132  # streaming multiprocessors of an H100: the answer when no GPU is there to ask
SHARED_BYTES = 99 << 10  # the least that a thread block may use on Ampere and later
OLDEST = 8.0  # compute capability: Ampere, the first with bfloat16 and asynchronous copies
LEAST_STEPS = 4  # blocks of slots of a split: fewer do not pay for merging it
MOST_SPLITS = 128
LEAST_ROWS = 16
MOST_ROWS, MOST_SLOTS, MOST_WARPS, MOST_STAGES = 256, 256, 16, 5  # beyond that, a block spills from the registers


@dataclasses.dataclass(frozen=True)
class GpuTiles:
    """One program's share: query rows, slots of a step; into how many programs the steps of a query block are split.

    warps, stages: of the compiler.
    """

    rows: int
    slots: int
    splits: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Device:
    """What matters of a GPU: its multiprocessors, and the bytes of shared memory that a thread block may use."""

    cores: int = CORES
    shared_bytes: int = SHARED_BYTES


def local_device() -> Device:
    """Ask the first device; the defaults when it is no GPU."""
    device = jax.local_devices()[0]
    if device.platform != "gpu":
        return Device()
    return Device(
        getattr(device, "core_count", None) or CORES, getattr(device, "shared_memory_per_block_optin", None) or SHARED_BYTES
    )


def too_old() -> str | None:
    """Say what GPU the first device is, if Triton's kernels are not known to run on it; None: they are, or it is none."""
    device = jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", ""))
    if device.platform != "gpu" or (capability.replace(".", "").isdecimal() and float(capability) >= OLDEST):
        return None
    return f"a {device.device_kind}; it takes NVIDIA GPUs of compute capability {OLDEST} or newer"


def forward_tiles(
    rows: int, width: int, itemsize: int, cached_itemsizes: tuple[int, ...], heads: int, slots: int, device: Device
) -> GpuTiles:
    """Choose the tiles of the forward kernel.

    Decode has a handful of rows and lives from memory: two thread blocks per multiprocessor, each with its copies in flight.
    Prefill has 64 rows or more and lives from the matrix units: large query blocks, so that a block of keys is used often.

    Args:
      rows: T * G.
      width: H.
      itemsize: bytes of a number of the queries; 4 means float32, whose exact products use no matrix unit.
      cached_itemsizes: bytes of a number of each cache.
      heads: B * K.
      slots: all the slots that a query row could read.
      device: what to fit.
    """
    exact = itemsize == 4
    most = 32 if exact else 128 if width <= 128 else 64
    cut = min(max(1 << (rows - 1).bit_length(), LEAST_ROWS), most)
    warps = 8 if cut > 64 else 4  # 16 rows a warp: with 32 the accumulator would leave the registers
    resident = 1 if cut > 64 else 2  # thread blocks on a multiprocessor
    size, stages = _fitting(cut, 32 if exact else 64, width, itemsize, cached_itemsizes, device.shared_bytes // resident)
    programs = heads * -(-rows // cut)
    wanted = min(resident * device.cores // programs, slots // (size * LEAST_STEPS), MOST_SPLITS)
    return GpuTiles(cut, size, max(wanted, 1), warps, stages)


def backward_tiles(rows: int, width: int, itemsize: int, cached_itemsizes: tuple[int, ...], device: Device) -> GpuTiles:
    """Choose the tiles of the kernels of the way back, which keep three times as much in registers.  See `forward_tiles`."""
    exact = itemsize == 4
    most = 16 if exact else 64 if width <= 64 else 32
    cut = min(max(1 << (rows - 1).bit_length(), LEAST_ROWS), most)
    size, _ = _fitting(2 * cut, 16 if exact else 32, width, itemsize, cached_itemsizes, device.shared_bytes)
    return GpuTiles(cut, size, 1, 4, 2)


def shared_bytes(rows: int, slots: int, stages: int, width: int, itemsize: int, cached_itemsizes: tuple[int, ...]) -> int:
    """Bound the shared memory of a program: queries, blocks in flight, and a converted block of an 8-bit or wider cache."""
    largest = max((*cached_itemsizes, itemsize))
    converted = any(n != itemsize for n in cached_itemsizes)
    return rows * width * itemsize + 2 * slots * width * (stages * largest + converted * itemsize)


def fitting(
    cut: GpuTiles, width: int, itemsize: int, cached_itemsizes: tuple[int, ...], slots: int, device: Device
) -> GpuTiles | None:
    """Return what a call (arguments as for `forward_tiles`) makes of tiles measured for its like; None: they do not fit."""
    needed = shared_bytes(cut.rows, cut.slots, cut.stages, width, itemsize, cached_itemsizes)
    splits = min(cut.splits, -(-slots // cut.slots))
    return dataclasses.replace(cut, splits=splits) if needed <= device.shared_bytes else None


def problem(cut: GpuTiles, sizes: Mapping[str, int], device: Device | None = None) -> str | None:
    """Say why tiles cannot be those of a key of these sizes; None: they can.  device: what to fit; None: the one here."""
    most_rows = min(max(sizes["rows"], LEAST_ROWS), MOST_ROWS)
    for name, least, most in (
        ("rows", LEAST_ROWS, most_rows),
        ("slots", LEAST_ROWS, MOST_SLOTS),
        ("warps", 1, MOST_WARPS),
    ):
        value = getattr(cut, name)
        if not least <= value <= most or value & (value - 1):
            return f"{name} {value} is not a power of two from {least} to {most}"
    for name, most in (("splits", MOST_SPLITS), ("stages", MOST_STAGES)):
        if not 1 <= getattr(cut, name) <= most:
            return f"{name} {getattr(cut, name)} is not from 1 to {most}"
    device = device or local_device()
    needed = shared_bytes(cut.rows, cut.slots, cut.stages, sizes["width"], sizes["itemsize"], (sizes["cached"],))
    if needed > device.shared_bytes:
        return f"a program would take {needed >> 10} KiB of shared memory, of {device.shared_bytes >> 10}"
    return None


def candidates(sizes: Mapping[str, int], heuristic: GpuTiles, device: Device | None = None) -> Iterator[GpuTiles]:
    """Go through tiles worth measuring: those that differ from the heuristic's in at most two numbers, and fit."""

    def around(value: int) -> tuple[int, ...]:
        return value, value // 2, 2 * value

    choices = (
        around(heuristic.rows),
        around(heuristic.slots),
        around(heuristic.splits),
        (heuristic.warps, *(n for n in (4, 8) if n != heuristic.warps)),
        (heuristic.stages, *(n for n in (2, 3, 4) if n != heuristic.stages)),
    )
    for numbers in itertools.product(*choices):
        cut = GpuTiles(*numbers)
        differing = sum(one != other for one, other in zip(numbers, dataclasses.astuple(heuristic), strict=True))
        if differing <= 2 and problem(cut, sizes, device) is None:
            yield cut


def _fitting(
    rows: int, slots: int, width: int, itemsize: int, cached_itemsizes: tuple[int, ...], most_bytes: int
) -> tuple[int, int]:
    """Return the most slots and stages that fit, slots first."""
    size = slots
    while size > LEAST_ROWS:
        for stages in (3, 2):
            if shared_bytes(rows, size, stages, width, itemsize, cached_itemsizes) <= most_bytes:
                return size, stages
        size //= 2
    return size, 2
