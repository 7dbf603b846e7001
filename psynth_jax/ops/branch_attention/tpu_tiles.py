"""How the TPU kernels, forward and backward, cut their work.

A step has a block of query rows (tokens x group) and a block of slots.  Blocks of queries are large
enough to fill a matrix unit while the next block of slots is fetched; few rows read all heads of a
block in one step.
"""

from __future__ import annotations

import dataclasses

# Query rows (tokens x group) of a step: enough to fill a matrix unit while a block is fetched.
ROWS = 1024
SLOTS = 512  # slots of a block
FETCH_BYTES = 12 << 20  # keys and values in flight: two blocks of every source
# Up to so many rows, all heads of a block are read in one step: a bigger copy from a longer stretch
# of memory.
FEW_ROWS = 64
TILE = 16  # rows of a tile, of bfloat16


@dataclasses.dataclass(frozen=True)
class Tiles:
    """kv_heads, query tokens and slots of one step; each divides its axis (tokens after padding)."""

    kv_heads: int
    tokens: int
    slots: int


def tiles(
    tokens: int,
    group: int,
    kv_heads: int,
    width: int,
    itemsize: int,
    sources: int,
    slots: int,
) -> Tiles:
    """Choose the tiles of a kernel call.

    Args:
      tokens, group, kv_heads: T, G and K of the call.
      width, itemsize: lanes of a cached vector, and bytes of a number of the largest cache.
      sources: caches that are read.
      slots: capacity of the largest cache row.
    """
    blocks = -(-tokens * group // ROWS)
    per_step = tokens
    if blocks > 1:  # blocks of equal size: little padding
        per_step = -(-tokens // (blocks * TILE)) * TILE
    heads = kv_heads if per_step * group <= FEW_ROWS else 1
    size = min(SLOTS, slots)
    # keys and values, two blocks of every source
    of_a_head = 2 * 2 * sources * size * width * itemsize
    while heads > 1 and (kv_heads % heads or heads * of_a_head > FETCH_BYTES):
        heads -= 1
    return Tiles(heads, per_step, size)
