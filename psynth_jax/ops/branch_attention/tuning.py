"""How a kernel cuts its work: heuristics that always have an answer."""

from __future__ import annotations

import dataclasses

ROWS = 1024  # query rows (tokens x group) of a step: enough to fill a matrix unit while a block is fetched
SLOTS = 512  # slots of a block
FETCH_BYTES = 12 << 20  # keys and values in flight: two blocks of every source
FEW_ROWS = 64  # below this, all heads of a block are read in one step: a bigger copy from a longer stretch of memory


TILE = 16  # rows of a tile, of bfloat16


@dataclasses.dataclass(frozen=True)
class Tiles:
    """kv_heads, query tokens and slots of one step; each divides its axis (tokens after padding)."""

    kv_heads: int
    tokens: int
    slots: int


def tiles(tokens: int, group: int, kv_heads: int, width: int, itemsize: int, sources: int, slots: int) -> Tiles:
    """Choose the tiles of a kernel call.

    Args:
      tokens, group, kv_heads: T, G and K of the call.
      width, itemsize: lanes of a cached vector, and bytes of a number of the largest cache.
      sources: caches that are read.
      slots: capacity of the largest cache row.
    """
    blocks = -(-tokens * group // ROWS)
    per_step = tokens if blocks == 1 else _round_up(-(-tokens // blocks), TILE)  # blocks of equal size: little padding
    heads = kv_heads if per_step * group <= FEW_ROWS else 1

    def fetched(heads: int, size: int) -> int:
        return 2 * 2 * sources * heads * size * width * itemsize

    size = min(SLOTS, slots)
    while heads > 1 and fetched(heads, size) > FETCH_BYTES:
        heads = next(n for n in range(heads - 1, 0, -1) if kv_heads % n == 0)
    return Tiles(heads, per_step, size)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
