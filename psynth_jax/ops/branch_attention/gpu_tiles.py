"""How the GPU kernels cut their work, fed by what the device says of itself.

Triton wants powers of two, and 16 rows at least on each side of a matrix product.  Shared memory
holds a query block and `stages` blocks of keys and values; that the stages' copies run ahead of the
arithmetic is what hides the memory's latency.  Estimates are upper bounds: a call that does not fit
fails to compile, one that uses less only waits a little more.
"""

from __future__ import annotations

import dataclasses

from psynth_jax.ops.branch_attention.gpu_device import Device

LEAST_STEPS = 4  # blocks of slots of a split: fewer do not pay for merging it
MOST_SPLITS = 128
LEAST_ROWS = 16


@dataclasses.dataclass(frozen=True)
class GpuTiles:
    """One program's share.

    rows, slots: query rows, and slots of a step.  splits: programs that share the steps of a query
    block.  warps, stages: of the compiler.
    """

    rows: int
    slots: int
    splits: int
    warps: int
    stages: int


def forward_tiles(
    rows: int,
    width: int,
    itemsize: int,
    cached_itemsizes: tuple[int, ...],
    heads: int,
    slots: int,
    device: Device,
) -> GpuTiles:
    """Choose the tiles of the forward kernel.

    Decode has a handful of rows and lives from memory: two thread blocks per multiprocessor, each with
    its copies in flight.  Prefill has 64 rows or more and lives from the matrix units: large query
    blocks, so that a block of keys is used often.

    Args:
      rows: T * G.
      width: H.
      itemsize: bytes of a number of the queries; 4 means float32, whose exact products use no matrix
        unit.
      cached_itemsizes: bytes of a number of each cache.
      heads: B * K.
      slots: all the slots that a query row could read.
      device: what to fit.
    """
    most_rows, most_slots = 64, 64
    if itemsize == 4:
        most_rows, most_slots = 32, 32
    elif width <= 128:
        most_rows = 128
    cut = _query_rows(rows, most_rows)
    warps, resident = 4, 2  # thread blocks on a multiprocessor
    if cut > 64:
        warps, resident = 8, 1  # 16 rows a warp: with 32 the accumulator would leave the registers
    most_bytes = device.shared_bytes // resident
    size, stages = _fitting(cut, most_slots, width, itemsize, cached_itemsizes, most_bytes)
    programs = heads * -(-rows // cut)
    wanted = min(resident * device.cores // programs, slots // (size * LEAST_STEPS), MOST_SPLITS)
    return GpuTiles(cut, size, max(wanted, 1), warps, stages)


def backward_tiles(
    rows: int,
    width: int,
    itemsize: int,
    cached_itemsizes: tuple[int, ...],
    device: Device,
) -> GpuTiles:
    """Choose the tiles of the kernels of the way back, which keep three times as much in registers.

    Args: see `forward_tiles`.
    """
    most_rows, most_slots = 32, 32
    if itemsize == 4:
        most_rows, most_slots = 16, 16
    elif width <= 64:
        most_rows = 64
    cut = _query_rows(rows, most_rows)
    size, _ = _fitting(2 * cut, most_slots, width, itemsize, cached_itemsizes, device.shared_bytes)
    return GpuTiles(cut, size, 1, 4, 2)


def shared_bytes(
    rows: int,
    slots: int,
    stages: int,
    width: int,
    itemsize: int,
    cached_itemsizes: tuple[int, ...],
) -> int:
    """Bound the bytes of shared memory of a program.

    Queries, blocks in flight, and a converted block where a cache has other numbers than the queries.
    """
    largest = max((*cached_itemsizes, itemsize))
    converted = any(n != itemsize for n in cached_itemsizes)
    return rows * width * itemsize + 2 * slots * width * (stages * largest + converted * itemsize)


def _query_rows(rows: int, most: int) -> int:
    """Round up to a power of two from `LEAST_ROWS` to `most`."""
    return min(max(1 << (rows - 1).bit_length(), LEAST_ROWS), most)


def _fitting(
    rows: int,
    slots: int,
    width: int,
    itemsize: int,
    cached_itemsizes: tuple[int, ...],
    most_bytes: int,
) -> tuple[int, int]:
    """Return the most slots and stages that fit, slots first."""
    size = slots
    while size > LEAST_ROWS:
        for stages in (3, 2):
            if shared_bytes(rows, size, stages, width, itemsize, cached_itemsizes) <= most_bytes:
                return size, stages
        size //= 2
    return size, 2
