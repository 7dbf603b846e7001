"""A sequence: token ids that are read and written by one row of a batch, and where its keys and values lie.

    reads    branch 1: runs, shift, span     branch 2: ...
    tokens   [ shared . . | own . . . . . | sampled . . ]
               what others wrote at the same positions     own and sampled tokens lie in the sequence's lease

A sequence waits until it is admitted: then it has a lease, and knows how much of its prompt others
have written.  `pending` tokens have no keys and values yet.  A sampled token is pending until the
next step runs it: the last one of an answer has none, unless its listener goes on for one step more
(a worker's last token belongs to its branch).

    launched   [ prompt . . . . | 17 | UNKNOWN ]      the device has sampled a token, and may run it already
    heard      [ prompt . . . . | 17 | 4 ]            now the listener says whether the sequence goes on

Where it does not, what was launched meanwhile is part of nothing.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import time
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.engine.step import Conditioning
from psynth_jax.engine.step_input import RUN_FIELDS, Layout, as_bits
from psynth_jax.errors import EngineError
from psynth_jax.kv.allocator import Run, merged, part_of_runs
from psynth_jax.kv.pool import Lease


class PositionedRun(NamedTuple):
    """A run, and the position of its first slot as the sequence sees it (a branch's: after re-encoding)."""

    run: Run
    position: int


class BranchRead(NamedTuple):
    """A branch that a sequence reads: its keys are turned back by `shift` positions, it then occupies `span`.

    identity: of what the branch says and where it was made, for sharing; None shares nothing.
    """

    runs: tuple[PositionedRun, ...]
    shift: int
    span: int
    identity: Hashable = None


class Next(enum.Enum):
    """What becomes of a sequence after a token."""

    GO_ON = enum.auto()  # the token gets keys and values, and another one is sampled
    END = enum.auto()


class Token(NamedTuple):
    """A sampled token; see `sampling.Sampled`.

    at: seconds of the clock that `Programs.now` reads, without those in which its sequence waited
    for a compilation.
    alternatives: the most likely tokens, as many as were asked for, with their log-probabilities.
    """

    id: int
    logprob: float
    margin: float
    at: float
    alternatives: tuple[tuple[int, float], ...] = ()


Listener = Callable[[Token], Next]
"""Takes every token that is sampled for a sequence, in the thread that drives the engine."""


@dataclasses.dataclass(frozen=True)
class SequenceSampling:
    """How a sequence is sampled.  seed: (the caller's seed, number of the row in its question)."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: tuple[int, int] = (0, 0)
    min_p: float = 0.0
    alternatives: int = 0


UNKNOWN = -2  # a token that the host has not seen yet; `sampling.NOT_FINITE` is another
GREEDY = SequenceSampling()
BASE = Conditioning()


class SequenceState(enum.Enum):
    """Where a sequence is on its way."""

    WAITING = enum.auto()
    PREFILL = enum.auto()
    DECODE = enum.auto()
    ENDED = enum.auto()


class TokenSequence:
    """One row's way through the engine.

    Args:
      prompt: token ids, at least one.
      listener: hears of every sampled token.
      new_tokens: how many may follow the prompt.
      draws: how many are sampled at most; None: one behind the last of these, too.
      vocabulary: tokens that may be sampled.
      block: of the pool, where its keys and values go.
      branches: what it reads.  kept: leases that live as long as the sequence.
      position: of the prompt's first token.
      scale: of LoRA and mapper of `conditioning`.  adapter: tells these from all others, for
        sharing.
      salt: what it shares a prompt with; None: with nobody.
      least_shared: the fewest tokens that are worth sharing.
      targets: the token that follows each of the prompt's, to be scored; nothing is sampled then.
      on_end: called once, when nothing more will be run: by the thread that drives the engine, or
        by one that cancels.

    Attributes:
      lease: room for what it does not share; None while it waits, or where it shares everything.
      runs: the most runs that it reads at any time.
      scores: log-probabilities of the targets so far.
      error: what ended it, None as long as all is well.
      waited: seconds for which its next step was compiled, on top of those that its thread had
        waited before.
      call: what it was submitted with.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        listener: Listener,
        *,
        new_tokens: int,
        vocabulary: int,
        draws: int | None = None,
        block: int = 0,
        branches: Sequence[BranchRead] = (),
        kept: Sequence[Lease] = (),
        position: int = 0,
        sampling: SequenceSampling = GREEDY,
        conditioning: Conditioning = BASE,
        scale: float = 0.0,
        adapter: Hashable = None,
        salt: Hashable = None,
        least_shared: int = 1,
        targets: Sequence[int] | None = None,
        on_end: Callable[[TokenSequence], None] | None = None,
    ):
        """Begin to wait."""
        assert len(prompt) >= 1
        self.tokens = list(prompt)
        self.listener = listener
        self.prompt_length, self.new_tokens, self.vocabulary = len(prompt), new_tokens, vocabulary
        self.draws = new_tokens + 1 if draws is None else draws
        self.block, self.branches, self._kept = block, tuple(branches), tuple(kept)
        self.position, self.sampling = position, sampling
        self.conditioning, self.scale, self.adapter = conditioning, scale, adapter
        self.salt, self.least_shared = salt, least_shared
        self.targets, self.on_end = targets, on_end
        self.admitted_at: float | None = None  # seconds of the clock
        self.scores: list[HostArray] = []
        self.state = SequenceState.WAITING
        self.error: BaseException | None = None
        self.submitted = self.cancelled = False
        self.waited = self.waited_before = 0.0
        self.call: Hashable = None
        self.passed = 0  # how many others were admitted before it that had come later
        self.lease: Lease | None = None
        self.shared: Lease | None = None
        self.known = len(prompt)  # tokens that the host has seen
        self.shared_tokens = 0  # of its prompt, that others have written
        self.runs = 0
        self.written = 0  # tokens that have keys and values, those that are shared counted
        self._scored = 0
        self._slots = np.zeros(0, np.int64)
        self._row: tuple[Layout, HostArray] | None = None

    @functools.cached_property
    def context(self) -> Hashable:
        """All that its keys and values depend on besides its tokens, for sharing; None: nothing is shared."""
        if self.salt is None or self.targets is not None:
            return None
        reads = tuple((branch.identity, branch.shift, branch.span) for branch in self.branches)
        if any(branch.identity is None for branch in self.branches):
            return None
        adapter = (self.adapter, self.scale) if self.scale and self.adapter is not None else None
        return self.salt, self.block, self.position, reads, adapter

    def admit(self, lease: Lease | None, shared: Lease | None = None) -> None:
        """Begin with what is shared as written.  lease: room for all tokens behind that; None: there are none."""
        self.lease, self.shared = lease, shared
        self.runs = sum(len(branch.runs) for branch in self.branches) + len(merged(self._own_runs()))
        self.admitted_at = time.perf_counter()
        self.written = self.shared_tokens = 0 if shared is None else shared.slots
        if lease is not None:
            self._slots = np.concatenate([np.arange(run.first, run.first + run.length) for run in lease.runs])
        self.state = SequenceState.PREFILL

    @property
    def pending(self) -> int:
        """How many of its tokens have no keys and values yet."""
        return len(self.tokens) - self.written

    @property
    def drawn(self) -> int:
        """How many tokens were sampled, seen or not."""
        return len(self.tokens) - self.prompt_length

    @property
    def has_begun(self) -> bool:
        """Whether it has its first token, or none any more: its prompt is there to be shared."""
        return self.known > self.prompt_length or self.state is SequenceState.ENDED

    @property
    def can_go_on(self) -> bool:
        """Whether there is more to run before it is known what its last token is."""
        if self.state is SequenceState.ENDED or self.written == self.prompt_length + self.new_tokens:
            return False
        return self.drawn < self.draws or self.targets is not None

    @property
    def leases(self) -> tuple[Lease, ...]:
        """All that it reads and writes."""
        own = [lease for lease in (self.lease, self.shared) if lease is not None]
        return (*own, *self._kept)

    @property
    def is_lost(self) -> bool:
        """Whether keys and values that it reads, or has written, are gone."""
        return any(lease.lost for lease in self.leases)

    def check(self) -> None:
        """Raise `MemoryLimitError` where keys and values that it reads, or has written, are lost."""
        for lease in self.leases:
            lease.check()

    @property
    def reads_its_block_only(self) -> bool:
        """Whether all that it reads lies on the block where its own tokens do."""
        read = [run for branch in self.branches for run in branch.runs]
        return all(each.run.block == self.block for each in read)

    def part(self, parts: int, blocks: int) -> int:
        """Return on which of `parts` equal parts of a pool's blocks its own tokens lie."""
        return self.block * parts // blocks

    def held(self, first: int, length: int) -> Lease:
        """Return a lease on the slots of `length` of its tokens, from token `first` on.  It outlives the sequence.

        Raises as `check` does.
        """
        (lease, *_) = self.leases
        with lease.pool.lock:
            self.check()
            return lease.pool.hold(part_of_runs(self._own_runs(), first, length))

    def row(self, layout: Layout, count: int, before: int = -1) -> HostArray:
        """Return its row of a step's input for its next `count` pending tokens; valid until it is asked for again.

        before: the row of the step before in which the first of them was sampled, if it is UNKNOWN.
        """
        if self._row is None or self._row[0] != layout:
            self._row = layout, self._fixed_row(layout)
        row, columns = self._row[1], layout.columns
        row[columns["before"]] = before
        row[columns["count"]] = count
        row[columns["position"]] = self.position + self.written
        row[columns["drawn"]] = self.drawn
        self._put_own_runs(row, layout)
        return row

    def next_tokens(self, count: int) -> list[int]:
        """Return its next `count` pending tokens."""
        return self.tokens[self.written : self.written + count]

    def slots(self, count: int) -> HostArray:
        """Return the slots `[count]` of its next `count` tokens."""
        first = self.written - self.shared_tokens
        return self._slots[first : first + count]

    def launched(self, count: int) -> None:
        """Note that a step runs its next `count` tokens, and samples a token behind the last of all."""
        # What is written is noted last: whatever an interrupt leaves out is run again.
        if self.targets is None and self.written + count == len(self.tokens):
            self.state = SequenceState.DECODE
            self.tokens.append(UNKNOWN)
        self.written += count

    def scored(self, first: int, logprobs: HostArray) -> None:
        """Note the log-probabilities of the targets of its tokens from `first` on; the last one ends it.

        Some may be told again, after an interrupt.
        """
        new = logprobs[self._scored - first :]
        self.scores.append(new)
        self._scored += len(new)
        if self._scored == self.prompt_length:
            self.end()

    def expects(self, place: int) -> bool:
        """Whether the token at a place of the sequence is the next one to be heard."""
        return self.state is not SequenceState.ENDED and self.known == place < len(self.tokens)

    def take(self, token: Token) -> None:
        """Give a sampled token to the listener, and go on as it says.  What the listener raises ends the sequence."""
        try:
            says = self.listener(token)
        except Exception as error:  # noqa: BLE001  a listener's fault ends its row alone
            self.end(error)
            return
        except BaseException:
            self.end(EngineError("an interrupt came while its last token was taken; ask again"))
            raise
        if says is Next.GO_ON:
            self.tokens[self.known] = token.id
            self.known += 1
        else:
            self.end()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more is run.  Its slots are kept until it is released, or dropped."""
        self.error = self.error or error
        self.state = SequenceState.ENDED
        del self.tokens[self.known :]
        self.written = min(self.written, self.known)

    def tell_end(self) -> None:
        """Tell that nothing more of it will be run."""
        try:
            if self.on_end is not None:
                self.on_end(self)
        except Exception:  # whatever the caller's code raises is raised once; an interrupted one is told again
            self.on_end = None
            raise
        self.on_end = None

    def release(self) -> None:
        """Let go of its slots, and of what it reads; nothing of it may be read any more.

        A step may still be writing to them: whoever gets them next writes later, since every step
        takes the buffer that the one before it gives back.
        """
        self._free_own()
        self._kept = ()

    def wait_again(self) -> None:
        """Give back what it was admitted with; what it reads stays."""
        self.state = SequenceState.WAITING
        self._free_own()

    def _free_own(self) -> None:
        leases = self.lease, self.shared
        self.lease = self.shared = None  # before their slots are somebody else's
        for lease in leases:
            if lease is not None:
                lease.release()

    def _own_runs(self) -> list[Run]:
        """Return the runs of all of its tokens, those that it shares first.

        What it shares has exactly one slot a token; behind its own tokens there may be more.
        """
        runs: list[Run] = []
        for lease in (self.shared, self.lease):
            if lease is not None:
                runs += lease.runs
        return runs

    def _fixed_row(self, layout: Layout) -> HostArray:
        """Return a row with all that does not change from step to step."""
        row, columns = layout.idle_row(), layout.columns
        low, high = self.sampling.seed[0] & 0xFFFFFFFF, self.sampling.seed[0] >> 32 & 0xFFFFFFFF
        row[columns["seed"]] = np.array([low, high, self.sampling.seed[1]], np.uint32).view(np.int32)
        row[columns["block"]] = self.block
        row[columns["top_k"]] = min(self.sampling.top_k, np.iinfo(np.int32).max)
        row[columns["vocabulary"]] = self.vocabulary
        row[columns["temperature"]] = as_bits(self.sampling.temperature)
        row[columns["top_p"]] = as_bits(self.sampling.top_p)
        row[columns["min_p"]] = as_bits(self.sampling.min_p)
        row[columns["alternatives"]] = self.sampling.alternatives
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
        return row

    def _put_own_runs(self, row: HostArray, layout: Layout) -> None:
        """Write the runs of its own tokens behind those that do not change."""
        columns = layout.columns
        runs = row[columns["runs"]].reshape(len(RUN_FIELDS), layout.runs)
        number = sum(len(branch.runs) for branch in self.branches)
        position = self.position
        for run in merged(part_of_runs(self._own_runs(), 0, self.written)):
            runs[:, number] = (run.block, run.first, run.length, layout.branches, position)
            position += run.length
            number += 1
        row[columns["runs_used"]] = number
