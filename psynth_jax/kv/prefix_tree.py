"""Prompts that begin as earlier ones did are not run again: a radix tree over the tokens of a pool.

    context A ── [ system prompt ] ─┬─ [ question 1 ] ── [ answer 1 ] ── [ question 2 ]
                                    └─ [ another question ]
    context B ── [ system prompt ]

A context is all that keys and values depend on besides the tokens before them: the adapter, the
position of the first token, the branches that are read, and what keeps tenants apart.  A node has
tokens, and the slots that hold their keys and values: nothing is copied, and a match is exact to
the token.

What only the tree holds is free memory: the least recently used leaves go when a reservation needs
their pages.  Everything here happens under the pool's lock.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.kv.allocator import Allocator, Run, merged, part_of_runs


class Node:
    """Tokens that follow those of the parent, and the runs of their slots.

    context: of a root, which has no parent, no token and no run.
    """

    def __init__(self, parent: Node | None, tokens: tuple[int, ...] = (), runs: tuple[Run, ...] = ()):
        """Begin without children."""
        self.parent, self.tokens, self.runs = parent, tokens, runs
        self.children: dict[int, Node] = {}  # by the first of their tokens
        self.used = 0
        self.context: Hashable = None


@dataclasses.dataclass(frozen=True)
class Match:
    """The longest known beginning of some tokens: all that `nodes` have but, of the last one, `last` only."""

    nodes: tuple[Node, ...]
    last: int

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return sum(len(node.tokens) for node in self.nodes[:-1]) + self.last

    @property
    def runs(self) -> tuple[Run, ...]:
        """Where their keys and values are."""
        runs: list[Run] = []
        for node in self.nodes:
            runs += node.runs
        return merged(part_of_runs(runs, 0, self.length))


class PrefixTree:
    """All that a pool knows of earlier tokens.  It is one owner of the pages of each node."""

    def __init__(self, allocator: Allocator):
        """Begin with nothing."""
        self._allocator = allocator
        self._roots: dict[Hashable, Node] = {}
        self._clock = itertools.count(1)
        self.evictions = 0  # of leaves

    def clear(self) -> None:
        """Forget everything."""
        for node in self._nodes():
            self._allocator.release(node.runs)
        self._roots.clear()

    def match(self, context: Hashable, tokens: Sequence[int], most: int) -> Match:
        """Return the longest known beginning of `tokens`, of at most `most` of them; it counts as used now."""
        now = next(self._clock)
        nodes: list[Node] = []
        done, last = 0, 0
        node = self._roots.get(context)
        while node is not None and done < most:
            node = node.children.get(tokens[done])
            if node is None:
                break
            last = common_length(node.tokens, tokens[done:most])
            node.used = now
            nodes.append(node)
            done += last
            if last < len(node.tokens):
                break
        return Match(tuple(nodes), last)

    def insert(self, context: Hashable, tokens: Sequence[int], runs: Sequence[Run], first: int) -> None:
        """Add what is not known of `tokens`.

        runs: the slots of `tokens[first:]`.  What lies before is known; where it was evicted,
        nothing is added.
        """
        root = self._roots.get(context)
        if root is None:
            root = self._roots[context] = Node(None)
            root.context = context
        match = self.match(context, tokens, len(tokens))
        known = match.length
        if known < len(tokens) and known >= first:
            parent = self._split(match)[-1] if match.nodes else root
            slots = part_of_runs(runs, known - first, len(tokens) - known)
            self._allocator.hold(slots)
            leaf = Node(parent, tuple(tokens[known:]), slots)
            leaf.used = next(self._clock)
            parent.children[leaf.tokens[0]] = leaf
        self._forget_if_empty(root)

    def move(self, match: Match, runs: Sequence[Run]) -> None:
        """Let what is matched lie in these slots, to which its keys and values were copied."""
        first = 0
        for node in self._split(match):
            slots = part_of_runs(runs, first, len(node.tokens))
            self._allocator.hold(slots)
            self._allocator.release(node.runs)
            node.runs = slots
            first += len(node.tokens)

    def evict(self, slots: int, block: int) -> None:
        """Let go of leaves, the least recently used first, until `slots` slots of a block are free.

        Nothing goes where that is not enough.  A leaf goes if its pages, or those of what it
        follows, have no other owner: an answer that is kept as a branch does not keep its prompt.
        """
        page = self._allocator.page
        owners, of_tree = self._allocator.owners()[block], self._page_counts()[block]
        alone = (of_tree > 0) & (owners == of_tree)
        missing = -(-slots // page) - int((owners == 0).sum())
        if int(alone.sum()) < missing:
            return
        leaves = [(node.used, id(node), node) for node in self._nodes() if not node.children]
        heapq.heapify(leaves)
        while missing > 0 and leaves:
            _, _, leaf = heapq.heappop(leaves)
            if leaf.runs[0].block != block or not self._frees_something(leaf, alone):
                continue
            for _, pages in self._allocator.pages(leaf.runs):
                of_tree[pages] -= 1
                missing -= int((alone[pages] & (of_tree[pages] == 0)).sum())
            alone &= of_tree > 0
            parent = self._drop(leaf)
            if parent.tokens and not parent.children:
                heapq.heappush(leaves, (parent.used, id(parent), parent))

    def slots_of_its_own(self) -> int:
        """Return how many slots, in whole pages, nobody but the tree holds."""
        owners, of_tree = self._allocator.owners(), self._page_counts()
        return int(((of_tree > 0) & (owners == of_tree)).sum()) * self._allocator.page

    def _frees_something(self, leaf: Node, alone: HostArray) -> bool:
        """Whether a leaf, or what it follows, has a page that is the tree's alone."""
        node: Node | None = leaf
        while node is not None:
            if any(alone[pages].any() for _, pages in self._allocator.pages(node.runs)):
                return True
            node = node.parent
        return False

    def _drop(self, leaf: Node) -> Node:
        """Take a leaf out of the tree; return its parent."""
        parent = leaf.parent
        assert parent is not None and not leaf.children
        self._allocator.release(leaf.runs)
        del parent.children[leaf.tokens[0]]
        self.evictions += 1
        self._forget_if_empty(parent)
        return parent

    def _forget_if_empty(self, root: Node) -> None:
        if root.parent is None and not root.children:
            del self._roots[root.context]

    def _split(self, match: Match) -> list[Node]:
        """Return nodes that have the tokens of a match and no more: the last of them may have to be cut in two.

        before   [ 1 2 3 4 ] ─ children         after   [ 1 2 ] ── [ 3 4 ] ─ children
        """
        nodes = list(match.nodes)
        node, count = nodes[-1], match.last
        parent, length = node.parent, len(node.tokens)
        if count == length:
            return nodes
        assert parent is not None
        first = Node(parent, node.tokens[:count], part_of_runs(node.runs, 0, count))
        rest = part_of_runs(node.runs, count, length - count)
        # A page that is cut has two owners now.
        self._allocator.hold((*first.runs, *rest))
        self._allocator.release(node.runs)
        first.used = node.used
        parent.children[first.tokens[0]] = first
        node.parent, node.tokens, node.runs = first, node.tokens[count:], rest
        first.children[node.tokens[0]] = node
        return [*nodes[:-1], first]

    def _nodes(self) -> Iterator[Node]:
        left: list[Node] = []
        for root in self._roots.values():
            left += root.children.values()
        while left:
            node = left.pop()
            left += node.children.values()
            yield node

    def _page_counts(self) -> HostArray:
        """Return how many nodes hold each page, `[blocks, pages]`."""
        counts = np.zeros_like(self._allocator.owners())
        for node in self._nodes():
            for pages in self._allocator.pages(node.runs):
                counts[pages] += 1
        return counts


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common from their first on."""
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return number
    return min(len(one), len(other))
