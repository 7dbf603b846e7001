"""How the TPU kernels cut their work: heuristics that always have an answer, and what else there is to try."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from psynth_jax.ops.cached_heads import LANES

ROWS = 1024  # query rows (tokens x group) of a step: enough to fill a matrix unit while a block is fetched
SLOTS = 512  # slots of a block
FETCH_BYTES = 12 << 20  # keys and values in flight: two blocks of every source
FEW_ROWS = 64  # below this, all heads of a block are read in one step: a bigger copy from a longer stretch of memory
STEP_BYTES = 40 << 20  # of fast memory, for a step with measured tiles: what is left is the compiler's

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
    size = min(SLOTS, slots)
    while heads > 1 and fetched_bytes(Tiles(heads, per_step, size), width, itemsize, sources) > FETCH_BYTES:
        heads = next(n for n in range(heads - 1, 0, -1) if kv_heads % n == 0)
    return Tiles(heads, per_step, size)


def fetched_bytes(cut: Tiles, width: int, itemsize: int, sources: int) -> int:
    """Return the bytes of keys and values in flight: two blocks of every source."""
    return 2 * 2 * sources * cut.kv_heads * cut.slots * width * itemsize


def step_bytes(cut: Tiles, group: int, width: int, itemsize: int, sources: int) -> int:
    """Bound what a step has in fast memory: blocks in flight, a dozen arrays like the query block, three like the logits."""
    rows = cut.kv_heads * max(cut.tokens * group, TILE)
    return fetched_bytes(cut, width, itemsize, sources) + 4 * rows * (12 * max(width, LANES) + 3 * cut.slots)


def fitting(
    cut: Tiles, tokens: int, group: int, kv_heads: int, width: int, itemsize: int, sources: int, slots: int
) -> Tiles | None:
    """Return what a call (arguments as for `tiles`) makes of tiles measured for its like; None: they do not fit."""
    fitted = Tiles(cut.kv_heads, min(cut.tokens, tokens), min(cut.slots, slots))
    divide = kv_heads % fitted.kv_heads == 0 and slots % fitted.slots == 0
    return fitted if divide and step_bytes(fitted, group, width, itemsize, sources) <= STEP_BYTES else None


def problem(cut: Tiles, sizes: Mapping[str, int]) -> str | None:
    """Say why tiles cannot be those of a key of these sizes; None: they can."""
    if sizes["kv_heads"] % cut.kv_heads:
        return f"kv_heads {cut.kv_heads} does not divide {sizes['kv_heads']}"
    if cut.tokens > sizes["tokens"] or (cut.tokens < sizes["tokens"] and cut.tokens % TILE):
        return f"tokens {cut.tokens} is neither {sizes['tokens']} nor a smaller multiple of {TILE}"
    # int8 scales have slots as their lanes, so a block that is no whole row is a multiple of them.
    if cut.slots > sizes["slots"] or (cut.slots < sizes["slots"] and (cut.slots % LANES or sizes["slots"] % cut.slots)):
        return f"slots {cut.slots} is neither {sizes['slots']} nor a multiple of {LANES} that divides it"
    needed = step_bytes(cut, sizes["group"], sizes["width"], sizes["itemsize"], sources=1)
    if needed > STEP_BYTES:
        return f"a step would take {needed / 2**20:.0f} MiB of fast memory, of {STEP_BYTES >> 20}"
    return None


def candidates(sizes: Mapping[str, int], heuristic: Tiles) -> Iterator[Tiles]:
    """Go through tiles worth measuring: numbers within a factor of 4 of the heuristic's, that have no `problem`."""
    heads = [n for n in range(1, sizes["kv_heads"] + 1) if sizes["kv_heads"] % n == 0]
    tokens = sorted({sizes["tokens"], *(TILE << n for n in range(7) if TILE << n < sizes["tokens"])})
    slots = sorted({min(LANES << n, sizes["slots"]) for n in range(6)})
    for kv_heads in heads:
        for per_step in (n for n in tokens if heuristic.tokens <= 4 * n and n <= 4 * heuristic.tokens):
            for size in (n for n in slots if heuristic.slots <= 4 * n and n <= 4 * heuristic.slots):
                cut = Tiles(kv_heads, per_step, size)
                if problem(cut, sizes) is None:
                    yield cut


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
