"""Which slots of the pool are whose: pages with reference counts, runs made of neighbouring pages.

    block 0   | page | page | page | page | page |
    counts       1      2      2      0      0         pages 1 and 2 have two owners, pages 3 and 4 are free

A sequence reserves pages for its prompt and its answer; a branch holds the pages of what a worker wrote after the worker
is gone; a shared prompt has several owners.  A page is free when its last owner releases it.

Bookkeeping on the host, a few hundred bytes a block.  Knows no device, no model and no thread: the pool has the lock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from psynth_jax.axes import HostArray


@dataclasses.dataclass(frozen=True)
class Run:
    """`length` neighbouring slots of one block of the pool, from slot `first` on."""

    block: int
    first: int
    length: int

    def part(self, first: int, length: int) -> Run:
        """Return `length` of its slots, from its slot number `first` on."""
        assert 0 <= first <= first + length <= self.length
        return Run(self.block, self.first + first, length)


def total_slots(runs: Iterable[Run]) -> int:
    """Return how many slots some runs have together."""
    return sum(run.length for run in runs)


def part_of_runs(runs: Sequence[Run], first: int, length: int) -> tuple[Run, ...]:
    """Return `length` slots of several runs, from slot number `first` on, counted through them in their order."""
    found = []
    for run in runs:
        begin = min(first, run.length)
        taken = min(length, run.length - begin)
        if taken:
            found.append(run.part(begin, taken))
        first, length = first - begin, length - taken
    assert length == 0, "more slots are asked for than the runs have"
    return tuple(found)


def merged(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Return the same slots in the same order, with runs that follow each other in a block as one."""
    found: list[Run] = []
    for run in runs:
        last = found[-1] if found else None
        if last is not None and last.block == run.block and last.first + last.length == run.first:
            found[-1] = Run(run.block, last.first, last.length + run.length)
        else:
            found.append(run)
    return tuple(found)


class Allocator:
    """Free and owned pages of a pool of `blocks` blocks of `slots` slots each.

    page: slots of a page; it divides `slots`.
    """

    def __init__(self, blocks: int, slots: int, page: int):
        """Start with all pages free."""
        assert slots % page == 0, (slots, page)
        self.page = page
        self._owners = np.zeros((blocks, slots // page), np.int32)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self._owners.shape[0]

    @property
    def slots(self) -> int:
        """Slots of a block."""
        return self._owners.shape[1] * self.page

    def free_slots(self, block: int) -> int:
        """Return how many slots of a block nobody owns."""
        return int((self._owners[block] == 0).sum()) * self.page

    def owned_slots(self) -> int:
        """Return how many slots of all blocks have an owner, in whole pages."""
        return int((self._owners > 0).sum()) * self.page

    def owners(self) -> HostArray:
        """Return how many owners each page has, `[blocks, pages]`; a copy."""
        return self._owners.copy()

    def pages(self, runs: Iterable[Run]) -> list[tuple[int, slice]]:
        """Return the pages that each of some runs touches, as an index of `owners`."""
        return [(run.block, self._pages_of(run)) for run in runs]

    def reserve(self, slots: int, block: int) -> tuple[Run, ...] | None:
        """Make the caller an owner of at least `slots` free slots of a block, in as few runs as possible.

        Returns runs of whole pages: one where a stretch of free pages is long enough, the shortest such stretch; else
        the longest stretches.  None, and nothing reserved, where not enough slots are free.
        """
        wanted = -(-slots // self.page)
        stretches = _free_stretches(self._owners[block])
        if sum(count for _, count in stretches) < wanted:
            return None
        enough = [stretch for stretch in stretches if stretch[1] >= wanted]
        if enough:
            stretches = [min(enough, key=lambda stretch: stretch[1])]
        else:
            stretches.sort(key=lambda stretch: stretch[1], reverse=True)
        runs = []
        for first, count in stretches:
            taken = min(count, wanted)
            if taken:
                runs.append(Run(block, first * self.page, taken * self.page))
                wanted -= taken
        self.hold(runs)
        return tuple(runs)

    def hold(self, runs: Iterable[Run]) -> None:
        """Count one more owner of every page that some runs touch."""
        for run in runs:
            self._owners[run.block, self._pages_of(run)] += 1

    def release(self, runs: Iterable[Run]) -> None:
        """Count one owner less of every page that some runs touch; the runs must be ones that were held."""
        for run in runs:
            pages = self._owners[run.block, self._pages_of(run)]
            assert (pages > 0).all(), f"{run} has no owner"
            pages -= 1

    def grow(self, slots: int) -> None:
        """Add free pages behind every block, up to `slots` slots a block."""
        assert slots % self.page == 0
        more = slots // self.page - self._owners.shape[1]
        assert more >= 0
        self._owners = np.pad(self._owners, ((0, 0), (0, more)))

    def _pages_of(self, run: Run) -> slice:
        assert run.length > 0, run
        return slice(run.first // self.page, -(-(run.first + run.length) // self.page))


def _free_stretches(owners: HostArray) -> list[tuple[int, int]]:
    """Return (first page, pages) of every stretch of neighbouring pages without an owner."""
    free = np.concatenate([[False], owners == 0, [False]])
    edges = np.flatnonzero(free[1:] != free[:-1])
    begins, ends = edges[::2], edges[1::2]
    return [(int(begin), int(end - begin)) for begin, end in zip(begins, ends, strict=True)]
