"""A sequence: token ids that are read and written by one row of a batch, and where its keys and values lie.

    reads    branch 1: runs, shift, span     branch 2: ...     shared: runs that others wrote at positions before its own
    own      [ prompt . . . . | sampled . . ]        `written` of them have keys and values, `pending` have none yet

A sampled token is pending until the next step runs it: the last one of an answer has no keys and values, unless its listener
goes on for one step more (a worker's last token belongs to its branch).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.engine.step_input import RUN_FIELDS, Layout, as_bits
from psynth_jax.kv.allocator import Run, part_of_runs
from psynth_jax.kv.pool import Lease


class PositionedRun(NamedTuple):
    """A run, and the position of its first slot as the sequence sees it (a branch's: after re-encoding)."""

    run: Run
    position: int


class BranchRead(NamedTuple):
    """A branch that a sequence reads: its keys are turned back by `shift` positions, it then occupies `span`."""

    runs: tuple[PositionedRun, ...]
    shift: int
    span: int


class Next(enum.Enum):
    """What becomes of a sequence after a token."""

    GO_ON = enum.auto()  # the token gets keys and values, and another one is sampled
    END = enum.auto()


Listener = Callable[[int, float, float], Next]
"""Takes (token, log-probability, margin) of every sampled token; see `sampling.Sampled`."""


@dataclasses.dataclass(frozen=True)
class SequenceSampling:
    """How a sequence is sampled.  seed: (the caller's seed, number of the row in its question)."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: tuple[int, int] = (0, 0)


GREEDY = SequenceSampling()


class SequenceState(enum.Enum):
    """Where a sequence is on its way."""

    PREFILL = enum.auto()
    DECODE = enum.auto()
    ENDED = enum.auto()


class TokenSequence:
    """One row's way through the engine.

    prompt: token ids, at least one.  lease: room for the prompt and all that may be sampled.
    branches, shared: what it reads.  kept: the leases of that, which live as long as the sequence.
    position: of the prompt's first token.
    scale: of LoRA and mapper.  vocabulary: tokens that may be sampled.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        lease: Lease,
        listener: Listener,
        *,
        branches: Sequence[BranchRead] = (),
        shared: Sequence[PositionedRun] = (),
        kept: Sequence[Lease] = (),
        position: int = 0,
        sampling: SequenceSampling = GREEDY,
        scale: float = 0.0,
        vocabulary: int,
    ):
        """Begin with nothing written."""
        assert len(prompt) >= 1
        self.lease = lease
        self.listener = listener
        self.branches, self.shared, self._kept = tuple(branches), tuple(shared), tuple(kept)
        self.sampling, self.scale, self.vocabulary = sampling, scale, vocabulary
        self.pending = list(prompt)
        self.written = 0
        self.drawn = 0
        self.state = SequenceState.PREFILL
        self._position = position
        self._slots = np.concatenate([np.arange(run.first, run.first + run.length) for run in lease.runs])
        self._row: tuple[Layout, HostArray] | None = None

    @property
    def runs(self) -> int:
        """The most runs that it reads at any time."""
        return sum(len(branch.runs) for branch in self.branches) + len(self.shared) + len(self.lease.runs)

    def check(self) -> None:
        """Raise `MemoryLimitError` where keys and values that it reads, or has written, are lost."""
        for lease in (self.lease, *self._kept):
            lease.check()

    @property
    def reads_its_block_only(self) -> bool:
        """Whether all that it reads lies on the block where its own tokens do."""
        block = self.lease.runs[0].block
        read = [run for branch in self.branches for run in branch.runs]
        return all(each.run.block == block for each in (*read, *self.shared))

    def part(self, parts: int) -> int:
        """Return on which of `parts` equal parts of the pool's blocks its own tokens lie."""
        return self.lease.runs[0].block * parts // self.lease.pool.allocator.blocks

    def own_runs(self) -> tuple[PositionedRun, ...]:
        """Return the runs of its own tokens that have keys and values."""
        found, position = [], self._position
        for run in part_of_runs(self.lease.runs, 0, self.written):
            found.append(PositionedRun(run, position))
            position += run.length
        return tuple(found)

    def row(self, layout: Layout, count: int) -> HostArray:
        """Return its row of a step's input for its next `count` pending tokens; valid until it is asked for again."""
        if self._row is None or self._row[0] != layout:
            self._row = layout, self._fixed_row(layout)
        row, columns = self._row[1], layout.columns
        row[columns["count"]] = count
        row[columns["position"]] = self._position + self.written
        row[columns["drawn"]] = self.drawn
        self._put_own_runs(row, layout)
        return row

    def slots(self, count: int) -> HostArray:
        """Return the slots `[count]` of its next `count` tokens."""
        return self._slots[self.written : self.written + count]

    def wrote(self, count: int) -> None:
        """Note that its next `count` tokens have keys and values now."""
        del self.pending[:count]
        self.written += count

    def take(self, token: int, logprob: float, margin: float) -> None:
        """Give a sampled token to the listener, and go on as it says."""
        self.drawn += 1
        if self.listener(token, logprob, margin) is Next.GO_ON:
            self.pending.append(token)
            self.state = SequenceState.DECODE
        else:
            self.state = SequenceState.ENDED

    def _fixed_row(self, layout: Layout) -> HostArray:
        """Return a row with all that does not change from step to step."""
        row, columns = layout.idle_row(), layout.columns
        low, high = self.sampling.seed[0] & 0xFFFFFFFF, self.sampling.seed[0] >> 32 & 0xFFFFFFFF
        row[columns["seed"]] = np.array([low, high, self.sampling.seed[1]], np.uint32).view(np.int32)
        row[columns["block"]] = self.lease.runs[0].block
        row[columns["top_k"]] = min(self.sampling.top_k, np.iinfo(np.int32).max)
        row[columns["vocabulary"]] = self.vocabulary
        row[columns["temperature"]] = as_bits(self.sampling.temperature)
        row[columns["top_p"]] = as_bits(self.sampling.top_p)
        row[columns["scale"]] = as_bits(self.scale)
        for name in ("shift", "span"):
            numbers = [getattr(branch, name) for branch in self.branches]
            row[columns[name]][: len(numbers)] = numbers
        row[columns["valid"]][: len(self.branches)] = 1
        runs = row[columns["runs"]].reshape(len(RUN_FIELDS), layout.runs)
        number = 0
        for index, branch in enumerate(self.branches):
            for run, position in branch.runs:
                runs[:, number] = (run.block, run.first, run.length, index, position)
                number += 1
        for run, position in self.shared:
            runs[:, number] = (run.block, run.first, run.length, layout.branches, position)
            number += 1
        return row

    def _put_own_runs(self, row: HostArray, layout: Layout) -> None:
        """Write the runs of its own tokens behind those that do not change."""
        columns = layout.columns
        runs = row[columns["runs"]].reshape(len(RUN_FIELDS), layout.runs)
        number = sum(len(branch.runs) for branch in self.branches) + len(self.shared)
        for run, position in self.own_runs():
            runs[:, number] = (run.block, run.first, run.length, layout.branches, position)
            number += 1
        row[columns["runs_used"]] = number
