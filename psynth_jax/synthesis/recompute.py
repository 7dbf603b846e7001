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
import numbers
from collections.abc import Sequence
from typing import Any

from psynth_jax.branch import Branch, PositionMode
from psynth_jax.errors import InputError, shown


def checked_recompute(recompute: Any, positions: PositionMode, branches: object) -> None:
    """Raise `InputError` for what is no number of tokens of each branch that could be encoded again."""
    is_number = isinstance(recompute, numbers.Integral) and not isinstance(recompute, bool)
    if not is_number or recompute < 0:
        raise InputError(f"recompute is {shown(recompute)}; it must be a number of tokens, 0 or more")
    if recompute and positions != "exact":
        raise InputError(f"recompute needs exact positions, not {positions}")
    if recompute and branches is None:
        raise InputError(f"recompute is {recompute}, and there are no branches of which tokens could be encoded again")


def check_count(groups: Sequence[Sequence[Branch]], questions: int) -> None:
    """Raise `InputError` where there are branches of another number of questions."""
    if len(groups) != questions:
        raise InputError(f"{questions} questions and branches for {len(groups)} of them")


def recomputed(
    prompts: Sequence[tuple[int, ...]], groups: Sequence[Sequence[Branch]], count: int, sinks: int
) -> tuple[list[tuple[int, ...]], Sequence[Sequence[Branch]]]:
    """Put the first `count` tokens of each question's branches before its prompt, and mask their entries.

    sinks: branches at the begin of every group that stay as they are.
    """
    check_count(groups, len(prompts))
    if not count:
        return list(prompts), groups
    longer, masked = [], []
    for prompt, group in zip(prompts, groups, strict=True):
        again: list[int] = []
        kept = list(group[:sinks])
        for branch in group[sinks:]:
            again += branch.token_ids[:count]
            kept.append(without_first(branch, count))
        longer.append((*again, *prompt))
        masked.append(kept)
    return longer, masked


def without_first(branch: Branch, count: int) -> Branch:
    """Return a branch whose first entries are masked.  It occupies the positions that it did."""
    kept = []
    for segment in branch.segments:
        masked = min(count, segment.length)
        count -= masked
        if masked < segment.length:
            kept.append(segment.without_first(masked) if masked else segment)
    return dataclasses.replace(branch, segments=tuple(kept))
