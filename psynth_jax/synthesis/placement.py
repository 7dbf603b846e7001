"""Which row of a cache a worker gets on a mesh, and caches from elsewhere that are brought to it.

Rows are cut in blocks over (data, branch).  Workers go round robin over the blocks of their question's part of `data`, so
that the branches of every question are spread evenly; rows that nobody has are fed nothing:

    data=1, branch=2, workers a b c         block 0 [ a c ]   block 1 [ b . ]

Without a mesh there is one block, and every worker has the row of its own number.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

from jax.sharding import Mesh, NamedSharding

from psynth_jax.branch import Branch, Segment
from psynth_jax.cache import KVCache, placement_on
from psynth_jax.sharding import BRANCH, DATA, ROW_AXES, shards

Item = TypeVar("Item")
Other = TypeVar("Other")


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """of: the row of each worker.  count: rows in all, a multiple of the blocks."""

    of: tuple[int, ...]
    count: int

    def spread(self, items: Sequence[Item], fill: Other) -> list[Item | Other]:
        """Return what belongs to each row, from what belongs to each worker; `fill` for rows that nobody has."""
        rows: list[Item | Other] = [fill] * self.count
        for row, item in zip(self.of, items, strict=True):
            rows[row] = item
        return rows


def plan_rows(questions: Sequence[int], mesh: Mesh | None) -> RowPlan:
    """Give every worker a row, from the question number of each."""
    data, branch = shards(mesh, (DATA,)), shards(mesh, (BRANCH,))
    asked = max(questions) + 1
    apart = asked % data == 0  # then every part of `data` has its own questions
    parts, width = (data, branch) if apart else (1, data * branch)
    taken = [0] * parts  # workers of each part so far
    places = []  # (block, row in the block)
    for question in questions:
        part = question * parts // asked
        nth, taken[part] = taken[part], taken[part] + 1
        places.append((part * width + nth % width, nth // width))
    rows = max(row for _, row in places) + 1
    return RowPlan(tuple(block * rows + row for block, row in places), data * branch * rows)


def question_axes(questions: Sequence[Sequence[Branch]] | None, count: int, mesh: Mesh | None) -> tuple[str, ...]:
    """Return what the own rows of `count` questions are cut over: data where every question finds its branches there.

    Where one does not, or the questions do not divide, all devices run all questions, and merge over data, too.
    """
    data = shards(mesh, (DATA,))
    if data == 1 or count % data:
        return ()
    for number, branches in enumerate(questions or ()):
        for segment in (segment for branch in branches for segment in branch.segments):
            if segment.row * data // segment.cache.rows != number * data // count:
                return ()
    return (DATA,)


class PlacedCaches:
    """Brings the caches of branches to one mesh, or to one device.  A cache that is there already is used as it is.

    Others are copied once and the copy is kept for as long as the original exists.  Their rows go round robin over all
    blocks: which question reads which is not known yet.
    """

    def __init__(self, mesh: Mesh | None, kv_heads: int):
        self._mesh = mesh
        self._placement = placement_on(mesh, kv_heads, ROW_AXES)
        self._known: dict[int, tuple[weakref.ref[KVCache], KVCache, RowPlan]] = {}

    def of(self, questions: Sequence[Sequence[Branch]]) -> Sequence[Sequence[Branch]]:
        """Return the same branches, in caches that lie where they are read."""
        return [
            [
                dataclasses.replace(branch, segments=tuple(self._segment(segment) for segment in branch.segments))
                for branch in branches
            ]
            for branches in questions
        ]

    def _segment(self, segment: Segment) -> Segment:
        cache, key = segment.cache, id(segment.cache)
        if self._is_here(cache):
            return segment
        known = self._known.get(key)
        if known is None or known[0]() is not cache:
            plan = plan_rows([0] * cache.rows, self._mesh)
            placed = cache.placed(self._mesh, self._placement, plan.of, plan.count)
            known = self._known[key] = (weakref.ref(cache, self._forget(key)), placed, plan)
        return dataclasses.replace(segment, cache=known[1], row=known[2].of[segment.row])

    def _forget(self, key: int) -> Callable[[object], None]:
        """Return what drops a copy when its original is gone; it does not keep this object alive."""
        known = self._known

        def forget(_: object) -> None:
            known.pop(key, None)

        return forget

    def _is_here(self, cache: KVCache) -> bool:
        if self._mesh is None:
            return cache.placement is None
        sharding = cache.heads.k.sharding
        same = isinstance(sharding, NamedSharding) and sharding.mesh == self._mesh
        return same and cache.placement is not None
