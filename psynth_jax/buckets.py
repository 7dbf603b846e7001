"""What can be compiled: the few shapes that batches are padded to.  Data; everything that runs a model goes by it.

    decode     1, 4, 8, 16, 32 or 64 rows of one token
    prefill    1 row of 64 or 512 tokens, 8 rows of 64 or 256
    reads      8 branches and a sink a row, then 32 and a sink, then powers of two and a sink

So ten programs do for all that a process with up to 8 branches a question runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

OWN_RUNS = 16  # runs of a row beside one for every branch: its own tokens, shared prompts, branches in several pieces


def bucket(count: int) -> int:
    """Round up to 1, 2, 3, 4, 6, 8, 12, 16, ...: padded sizes, so that few shapes are ever compiled."""
    size = 1
    while size < count:
        three_quarters_of_next = size + size // 2
        if size > 1 and count <= three_quarters_of_next:
            return three_quarters_of_next
        size *= 2
    return size


class Shape(NamedTuple):
    """Rows and tokens of a call; branches W and runs C that a row of it can read."""

    rows: int
    tokens: int
    branches: int
    runs: int


class KnownProgram(NamedTuple):
    """A program that can be compiled.  is_default: one of the few that do for up to 8 branches a question."""

    name: str
    shape: Shape
    is_default: bool


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The shapes of one process.

    decode: numbers of rows, ascending.  prefill: (rows, tokens).  branches: numbers of branches W, ascending, the sink
    counted; beyond the last one it doubles.  data: every number of rows is a multiple of it (the parts of a mesh that have
    questions of their own).  call_tokens: how many tokens of prefill take as long as reading the weights, and all else that
    a call costs however few tokens it has.  chunk_between_tokens: the most tokens of
    prompts that are run, on a device, while others wait for their next token.
    """

    decode: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    prefill: tuple[tuple[int, int], ...] = ((1, 64), (1, 512), (8, 64), (8, 256))
    branches: tuple[int, ...] = (9, 33)
    data: int = 1
    call_tokens: int = 32
    chunk_between_tokens: int = 64

    def rows_of(self, rows: int) -> int:
        """Return the rows of the smallest decode step that takes `rows`, or of the largest that there is."""
        for size in self.decode:
            if size * self.data >= rows:
                return size * self.data
        return self.decode[-1] * self.data

    @property
    def most_rows(self) -> int:
        """Rows of the largest decode step."""
        return self.decode[-1] * self.data

    def chunk_of(self, waiting: Sequence[int], most: int | None = None) -> tuple[int, int]:
        """Return (rows, tokens) of the prefill call that wastes the least on rows with `waiting` tokens each.

        waiting: tokens that each row has left, in the order in which rows are taken; all at least
        1.  most: tokens of the largest call that may be run; the smallest one always may.
        """
        smallest = min(rows * tokens for rows, tokens in self.prefill)
        best, best_use = (0, 0), -1.0
        for rows, tokens in self.prefill:
            if most is not None and rows * tokens > max(most, smallest):
                continue
            taken = sum(min(left, tokens) for left in waiting[: rows * self.data])
            use = taken / (rows * self.data * tokens + self.call_tokens)
            if use > best_use:
                best, best_use = (rows * self.data, tokens), use
        return best

    def branches_of(self, branches: int) -> int:
        """Return the W of the smallest shape that reads `branches`, the sink counted."""
        for size in self.branches:
            if branches <= size:
                return size
        size = self.branches[-1]
        while size < branches:
            size = 2 * (size - 1) + 1
        return size

    def runs_of(self, branches: int, runs: int) -> int:
        """Return the C that goes with `branches` (one of `branches_of`) and has room for `runs` runs.

        The second form is for branches that were written in several turns; 0 where a row has more runs than that.
        """
        for size in _runs_forms(branches):
            if runs <= size:
                return size
        return 0

    def shapes(self, branches: int | None = None, runs: int | None = None) -> list[Shape]:
        """Return the shapes of one form: of rows that read `branches` and `runs`, by default of the smallest ones."""
        branches = branches or self.branches[0]
        runs = runs or _runs_forms(branches)[0]
        found = []
        for rows in self.decode:
            found.append(Shape(rows * self.data, 1, branches, runs))
        for rows, tokens in self.prefill:
            found.append(Shape(rows * self.data, tokens, branches, runs))
        return found

    def programs(self) -> list[KnownProgram]:
        """Return what can be compiled: the default set first, then what comes at its first use.

        Behind the last number of branches further ones follow, twice as many each time.
        """
        found = [KnownProgram("step", shape, is_default=True) for shape in self.shapes()]
        for branches in self.branches:
            for runs in _runs_forms(branches):
                for shape in self.shapes(branches, runs):
                    if shape not in self.shapes():
                        found.append(KnownProgram("step", shape, is_default=False))
                    if shape.tokens > 1:
                        found.append(KnownProgram("score", shape, is_default=False))
        return found


def _runs_forms(branches: int) -> tuple[int, int]:
    """Return the numbers of runs C that go with W branches; the second is for branches of several turns."""
    return OWN_RUNS + branches, OWN_RUNS + 8 * branches
