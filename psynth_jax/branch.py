"""One branch: keys and values that are cached, and what they say.  A view, never a copy.

A worker's slots hold its prompt and then what it wrote; its branch is a lease on the latter:

    slots    [ p p p g g g g g .  . ]        positions of the cached keys: P - 3 .. P + 4
                     ^ a segment of 5        shift P: re-encoded to 0 .. 4, span 5

On the host a branch also carries its tokens and its text.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal, TypeAlias

from psynth_jax.kv.pool import Lease
from psynth_jax.kv.transfer import StoredSlots

PositionMode: TypeAlias = Literal["exact", "reference_live"]
FinishReason: TypeAlias = Literal["stop", "length", "given"]

_serials = itertools.count(1)


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """Neighbouring tokens of a branch.

    held: where their keys and values are: in a pool, or, of a branch from a file, in host memory.
    position: of the first token, after re-encoding.
    """

    held: Lease | StoredSlots
    position: int = 0

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return self.held.slots

    @property
    def lost(self) -> bool:
        """Whether its keys and values are gone, because a step failed that had been given their pool."""
        return isinstance(self.held, Lease) and self.held.lost

    def without_first(self, count: int) -> Segment:
        """Return the segment without its first `count` tokens, of which it has more."""
        rest = self.held.part(count, self.length - count)
        return Segment(rest, self.position + count)


@dataclasses.dataclass(frozen=True, eq=False)
class Branch:
    """One worker's contribution.

    token_ids, text: what the branch says.  shift: positions by which its keys are turned back.  span: positions that it
    occupies afterwards.  finish_reason: "stop", "length" (the worker was cut off) or "given" (a fixed text).
    Several segments make one branch when a worker wrote in several turns.
    serial: tells it from every other branch of this process, for sharing what was read behind it; a
    copy has another one.
    """

    token_ids: tuple[int, ...]
    text: str
    shift: int
    span: int
    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    serial: int = dataclasses.field(init=False, default_factory=lambda: next(_serials))

    @property
    def lost(self) -> bool:
        """Whether any of its keys and values are gone."""
        return any(segment.lost for segment in self.segments)
