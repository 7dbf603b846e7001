"""What the pool knows of earlier tokens: exact to the token, by context, and free when it is needed."""

from __future__ import annotations

import numpy as np

from psynth_jax.kv.allocator import Allocator, Run
from psynth_jax.kv.prefix_tree import PrefixTree

PAGE = 4


def tree(pages: int = 32) -> tuple[PrefixTree, Allocator]:
    allocator = Allocator(1, pages * PAGE, PAGE)
    return PrefixTree(allocator), allocator


def added(tree: PrefixTree, allocator: Allocator, tokens: list[int], context: str = "a") -> tuple[Run, ...]:
    """Add tokens whose owner has gone; return their runs."""
    runs = allocator.reserve(len(tokens), 0)
    assert runs is not None
    tree.insert(context, tokens, runs, 0)
    allocator.release(runs)
    return runs


def slots(runs: tuple[Run, ...]) -> list[int]:
    found: list[int] = []
    for run in runs:
        found += range(run.first, run.first + run.length)
    return found


class TestMatch:
    def test_exact_to_the_token(self) -> None:
        known, allocator = tree()
        runs = added(known, allocator, [1, 2, 3, 4, 5, 6, 7])
        match = known.match("a", [1, 2, 3, 4, 5, 9], 6)
        assert match.length == 5 and slots(match.runs) == slots(runs)[:5]

    def test_at_most(self) -> None:
        known, allocator = tree()
        added(known, allocator, [1, 2, 3])
        assert known.match("a", [1, 2, 3], 2).length == 2
        assert known.match("a", [1, 2, 3], 0).length == 0

    def test_nothing(self) -> None:
        known, allocator = tree()
        assert known.match("a", [1], 1).length == 0
        added(known, allocator, [1, 2])
        assert known.match("a", [2, 1], 2).length == 0

    def test_contexts_are_apart(self) -> None:
        known, allocator = tree()
        added(known, allocator, [1, 2, 3], "a")
        assert known.match("b", [1, 2, 3], 3).length == 0

    def test_through_several_nodes(self) -> None:
        known, allocator = tree()
        first = slots(added(known, allocator, [1, 2, 3, 4, 5]))[:5]
        second = allocator.reserve(4, 0)
        assert second is not None
        known.insert("a", [1, 2, 3, 8, 9, 10, 11], second, 3)
        other = known.match("a", [1, 2, 3, 4, 5], 5)
        assert slots(other.runs) == first
        match = known.match("a", [1, 2, 3, 8, 9, 10, 11], 7)
        assert slots(match.runs) == first[:3] + slots(second)[:4]

    def test_neighbours_are_one_run(self) -> None:
        known, allocator = tree()
        runs = allocator.reserve(8, 0)
        assert runs is not None
        known.insert("a", [1, 2, 3], runs, 0)
        known.insert("a", [1, 2, 3, 4, 5, 6], runs, 0)
        assert known.match("a", [1, 2, 3, 4, 5, 6], 6).runs == (Run(0, runs[0].first, 6),)


class TestInsert:
    def test_what_is_known_is_not_added(self) -> None:
        known, allocator = tree()
        runs = added(known, allocator, [1, 2, 3, 4])
        added(known, allocator, [1, 2, 3, 4])
        assert allocator.owned_slots() == PAGE
        assert known.match("a", [1, 2, 3, 4], 4).runs == (Run(0, runs[0].first, 4),)

    def test_nothing_behind_what_was_evicted(self) -> None:
        known, allocator = tree()
        runs = allocator.reserve(2, 0)
        assert runs is not None
        known.insert("a", [1, 2, 3, 4], runs, 2)
        assert known.match("a", [1, 2, 3, 4], 4).length == 0
        allocator.release(runs)
        assert allocator.owned_slots() == 0


class TestEvict:
    def test_least_recently_used_first(self) -> None:
        known, allocator = tree(4)
        for first in (1, 2, 3):
            added(known, allocator, [first] * 4)
        known.match("a", [1] * 4, 4)
        known.evict(2 * PAGE, 0)
        lengths = [known.match("a", [first] * 4, 4).length for first in (1, 2, 3)]
        assert lengths == [4, 0, 4] and known.evictions == 1

    def test_leaves_before_what_they_follow(self) -> None:
        known, allocator = tree(4)
        added(known, allocator, [1, 2, 3, 4, 5, 6, 7, 8])
        added(known, allocator, [1, 2, 3, 4, 9])
        known.match("a", [1, 2, 3, 4, 5, 6, 7, 8], 8)
        known.evict(2 * PAGE, 0)
        assert known.match("a", [1, 2, 3, 4, 9], 5).length == 4
        known.evict(4 * PAGE, 0)
        assert allocator.owned_slots() == 0 and known.match("a", [1], 1).length == 0

    def test_what_somebody_holds_stays(self) -> None:
        known, allocator = tree(2)
        held = allocator.reserve(4, 0)
        assert held is not None
        known.insert("a", [1, 2, 3, 4], held, 0)
        known.evict(2 * PAGE, 0)
        assert known.match("a", [1, 2, 3, 4], 4).length == 4 and known.evictions == 0

    def test_what_follows_a_held_answer(self) -> None:
        """An answer that is held has a page of its prompt's end, and no other."""
        known, allocator = tree(4)
        runs = allocator.reserve(16, 0)
        assert runs is not None
        known.insert("a", list(range(14)), runs, 0)
        known.insert("a", list(range(16)), runs, 0)
        held = (Run(0, runs[0].first + 14, 2),)
        allocator.hold(held)
        allocator.release(runs)
        known.evict(3 * PAGE, 0)
        assert allocator.free_slots(0) == 3 * PAGE

    def test_nothing_goes_where_all_is_not_enough(self) -> None:
        known, allocator = tree(4)
        held = allocator.reserve(8, 0)
        assert held is not None
        added(known, allocator, [1, 2, 3, 4])
        known.evict(3 * PAGE, 0)
        assert known.match("a", [1, 2, 3, 4], 4).length == 4

    def test_a_page_of_two_nodes(self) -> None:
        """A node that ends inside of a page, and the one that begins there, hold it both."""
        known, allocator = tree(4)
        added(known, allocator, [1, 2, 3, 4, 5, 6])
        known.match("a", [1, 2], 2)
        added(known, allocator, [1, 2, 7])
        known.evict(4 * PAGE, 0)
        assert allocator.owned_slots() == 0

    def test_of_its_own(self) -> None:
        known, allocator = tree()
        held = allocator.reserve(4, 0)
        assert held is not None
        known.insert("a", [1, 2, 3, 4], held, 0)
        added(known, allocator, [5, 6, 7, 8, 9])
        assert known.slots_of_its_own() == 2 * PAGE
        allocator.release(held)
        assert known.slots_of_its_own() == 3 * PAGE
        known.clear()
        assert allocator.owned_slots() == 0 and known.slots_of_its_own() == 0


def test_moved_slots() -> None:
    known, allocator = tree()
    added(known, allocator, [1, 2, 3, 4, 5, 6, 7])
    added(known, allocator, [1, 2, 3, 9])
    copy = allocator.reserve(5, 0)
    assert copy is not None
    known.move(known.match("a", [1, 2, 3, 4, 5], 5), copy)
    allocator.release(copy)
    assert slots(known.match("a", [1, 2, 3, 4, 5], 5).runs) == slots(copy)[:5]
    assert known.match("a", [1, 2, 3, 4, 5, 6, 7], 7).length == 7
    assert known.match("a", [1, 2, 3, 9], 4).length == 4


def test_against_a_list_of_texts() -> None:
    """Random texts: what is known of each is the longest beginning that it has in common with an earlier one."""
    rng = np.random.default_rng(0)
    known, allocator = tree(4096)
    texts: list[list[int]] = []
    for _ in range(200):
        text = rng.integers(0, 3, rng.integers(1, 12)).tolist()
        longest = max((common(text, other) for other in texts), default=0)
        match = known.match("a", text, len(text))
        assert match.length == longest == len(slots(match.runs))
        added(known, allocator, text)
        texts.append(text)
    assert known.slots_of_its_own() == allocator.owned_slots()
    known.evict(4096 * PAGE, 0)
    assert allocator.owned_slots() == 0


def common(one: list[int], other: list[int]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count
