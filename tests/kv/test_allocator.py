"""Pages, their owners, and runs made of them."""

from __future__ import annotations

import numpy as np
import pytest

from psynth_jax.kv.allocator import Allocator, Run, part_of_runs, total_slots

PAGE = 4


def allocator(blocks: int = 1, pages: int = 8) -> Allocator:
    return Allocator(blocks, pages * PAGE, PAGE)


def reserved(pages: Allocator, slots: int, block: int = 0) -> tuple[Run, ...]:
    runs = pages.reserve(slots, block)
    assert runs is not None
    return runs


def test_a_reservation_is_one_run_of_whole_pages() -> None:
    pages = allocator()
    assert reserved(pages, 9) == (Run(0, 0, 12),)
    assert pages.free_slots(0) == 20
    assert pages.owned_slots() == 12


def test_reservations_do_not_overlap_and_fill_the_block() -> None:
    pages = allocator()
    owned: set[int] = set()
    for slots in (1, 4, 5, 8, 3, 4):
        for run in reserved(pages, slots):
            mine = set(range(run.first, run.first + run.length))
            assert not owned & mine
            owned |= mine
    assert owned == set(range(32))
    assert pages.reserve(1, 0) is None


def test_the_shortest_stretch_that_is_long_enough_is_taken() -> None:
    pages = allocator()
    first, kept, second, rest = (reserved(pages, slots) for slots in (12, 4, 8, 8))
    pages.release(first)
    pages.release(second)
    assert reserved(pages, 8) == second
    assert reserved(pages, 8) == (Run(0, 0, 8),)
    pages.release(kept)
    pages.release(rest)


def test_several_runs_where_no_stretch_is_long_enough() -> None:
    pages = allocator()
    parts = [reserved(pages, 4) for _ in range(8)]
    for number in (0, 2, 3, 6):
        pages.release(parts[number])
    assert reserved(pages, 14) == (Run(0, 8, 8), Run(0, 0, 4), Run(0, 24, 4))
    assert pages.free_slots(0) == 0


def test_nothing_is_reserved_where_it_does_not_fit() -> None:
    pages = allocator()
    reserved(pages, 20)
    assert pages.reserve(13, 0) is None
    assert pages.free_slots(0) == 12


def test_a_page_is_free_when_its_last_owner_releases_it() -> None:
    pages = allocator()
    runs = reserved(pages, 16)
    branch = part_of_runs(runs, 5, 6)  # slots 5 .. 10: pages 1 and 2
    pages.hold(branch)
    pages.release(runs)
    assert pages.owned_slots() == 8
    assert reserved(pages, 20) == (Run(0, 12, 20),)
    pages.release(branch)
    assert pages.free_slots(0) == 12


def test_blocks_have_their_own_pages() -> None:
    pages = allocator(blocks=2)
    assert reserved(pages, 32, block=1) == (Run(1, 0, 32),)
    assert pages.reserve(1, 1) is None
    assert pages.free_slots(0) == 32


def test_growth_adds_free_pages_behind_the_others() -> None:
    pages = allocator(pages=2)
    held = reserved(pages, 6)
    pages.grow(6 * PAGE)
    assert pages.slots == 24
    assert reserved(pages, 16) == (Run(0, 8, 16),)
    pages.release(held)
    assert pages.free_slots(0) == 8


def test_a_part_is_counted_through_all_runs() -> None:
    runs = [Run(0, 40, 4), Run(0, 8, 8), Run(0, 100, 4)]
    assert part_of_runs(runs, 0, 16) == tuple(runs)
    assert part_of_runs(runs, 2, 5) == (Run(0, 42, 2), Run(0, 8, 3))
    assert part_of_runs(runs, 4, 8) == (Run(0, 8, 8),)
    assert part_of_runs(runs, 13, 0) == ()
    assert total_slots(part_of_runs(runs, 3, 10)) == 10


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_reservations_and_releases_leaves_the_pool_as_it_was(seed: int) -> None:
    """Runs that are live together never overlap; after the last release everything is free."""
    rng = np.random.default_rng(seed)
    pages = allocator(blocks=2, pages=16)
    live: list[tuple[Run, ...]] = []
    for _ in range(200):
        if live and rng.random() < 0.45:
            pages.release(live.pop(int(rng.integers(len(live)))))
            continue
        runs = pages.reserve(int(rng.integers(1, 30)), int(rng.integers(2)))
        if runs is not None:
            live.append(runs)
        taken = np.zeros((2, 16 * PAGE), int)
        for run in (run for owner in live for run in owner):
            taken[run.block, run.first : run.first + run.length] += 1
        assert taken.max(initial=0) <= 1
        assert taken.sum() == pages.owned_slots()
    for runs in live:
        pages.release(runs)
    assert pages.owned_slots() == 0
