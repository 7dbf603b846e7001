"""One branch: segments of cache rows, and what they say.  A view, never a copy.

A worker's cache row holds the tail of its prompt and then what it wrote; its branch is a segment
of that row:

    row r    [ p p p g g g g g .  . ]        positions of the cached keys: P - 3 .. P + 4
                     ^first    length 5      shift P: re-encoded to 0 .. 4, span 5

On the host a branch also carries its tokens and its text.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from psynth_jax.cache import KVCache

PositionMode: TypeAlias = Literal["exact", "reference_live"]
FinishReason: TypeAlias = Literal["stop", "length", "given"]


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """`length` slots of one cache row, from slot `first` on."""

    cache: KVCache
    row: int
    first: int
    length: int


@dataclasses.dataclass(frozen=True, eq=False)
class Branch:
    """One worker's contribution.

    token_ids, text: what the branch says.  shift: positions by which its keys are turned back.  span: positions that it
    occupies afterwards.  finish_reason: "stop", "length" (the worker was cut off) or "given" (a fixed text).
    Several segments make one branch when a worker wrote in several turns.
    """

    token_ids: tuple[int, ...]
    text: str
    shift: int
    span: int
    segments: tuple[Segment, ...]
    finish_reason: FinishReason
