"""The first tokens of branches, encoded again by the synthesizer: a dial between caches and texts.

    branch 1   [ - - a3 a4 a5 ]                                     old entries of a1, a2 are masked
    branch 2   [ - - b3 b4 ]
    own row                      [ a1 a2 b1 b2 | question | answer ]    read all of the above, causally

With 0 tokens everything is read from caches.  With more than the longest branch has, everything is prefilled, as texts are.
Entries that are encoded again need no mapper: the synthesizer wrote them.  (The idea of recomputing few tokens of a reused
cache: CacheBlend, arXiv 2405.16444; the first of every chunk: EPIC, arXiv 2410.15332.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from psynth_jax.branches import Branch, PositionMode, Segment
from psynth_jax.errors import InputError, shown


def checked_recompute(recompute: Any, positions: PositionMode, branches: object) -> None:
    """Raise `InputError` for what is no number of tokens of each branch that could be encoded again."""
    if isinstance(recompute, bool) or not isinstance(recompute, int) or recompute < 0:
        raise InputError(f"recompute is {shown(recompute)}; it must be a number of tokens, 0 or more")
    if recompute and positions != "exact":
        raise InputError(f"recompute needs exact positions, not {positions}")
    if recompute and branches is None:
        raise InputError(f"recompute is {recompute}, and there are no branches of which tokens could be encoded again")


def first_tokens(branches: Sequence[Branch], count: int) -> tuple[int, ...]:
    """Return the first tokens of each branch, one branch behind the other."""
    tokens: list[int] = []
    for branch in branches:
        tokens += branch.token_ids[:count]
    return tuple(tokens)


def without_first(branches: Sequence[Branch], count: int) -> list[Branch]:
    """Return branches whose first entries are masked.  They occupy the positions that they did."""
    return [_masked(branch, count) for branch in branches]


def _masked(branch: Branch, count: int) -> Branch:
    kept = []
    for segment in branch.segments:
        masked = min(count, segment.length)
        count -= masked
        if masked < segment.length:
            kept.append(Segment(segment.cache, segment.row, segment.first + masked, segment.length - masked))
    return dataclasses.replace(branch, segments=tuple(kept))
