"""Who may begin: first come, first admitted, as soon as there are pages for a prompt and its answer.

    waiting   A (no room yet)   B   C                 B and C may pass A, but not for ever
              D (begins as B does)                    D begins when B's prompt is there to be shared

A prompt that begins as an earlier one did shares its slots.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Sequence

from psynth_jax.buckets import Buckets
from psynth_jax.engine.lane import layout_of
from psynth_jax.engine.sequences import SequenceState, TokenSequence
from psynth_jax.errors import InputError, MemoryLimitError, UserError, is_out_of_memory
from psynth_jax.kv.pool import Lease, Pool
from psynth_jax.kv.prefix_tree import Match, common_length
from psynth_jax.kv.transfer import compacted

MOST_PASSES = 16  # so many that came later are admitted before one for which there is no room
MOST_PIECES = 8  # of a shared prompt; where it lies in more of them, it is copied into one
WORTH_WAITING = 16  # tokens that another one is about to write: one more prefill costs more than fewer


class Admission:
    """Sequences that wait for slots of a pool.

    counts: takes what is counted.
    """

    def __init__(self, pool: Pool, buckets: Buckets, counts: collections.Counter[str]):
        """Begin with nobody."""
        self.waiting: collections.deque[TokenSequence] = collections.deque()
        self.ended: list[TokenSequence] = []  # without having run
        self._added = 0
        self._stuck: Hashable = None
        self._pool, self._buckets, self._counts = pool, buckets, counts

    def add(self, sequence: TokenSequence) -> None:
        """Let a sequence wait."""
        self.waiting.append(sequence)
        self._added += 1

    def admit(self, running: Sequence[TokenSequence], begin: Callable[[TokenSequence], None]) -> None:
        """Let those begin for whom there is room, one by one.

        Who can never be admitted ends with an error that says so, and so does one whose admission
        goes wrong.
        """
        state = self._state(running)
        if state == self._stuck:
            return  # nothing has changed since nobody was admitted
        there = list(running)
        lacking: list[TokenSequence] = []  # for which there is no room
        for sequence in list(self.waiting):
            if len(lacking) >= MOST_PASSES or (lacking and lacking[0].passed >= MOST_PASSES):
                break
            try:
                if self._is_better_soon(sequence, there):
                    continue
                if not self._has_room(sequence, there):
                    lacking.append(sequence)
                    continue
            except Exception as error:  # noqa: BLE001  a failing copy ends whom it was for
                self._counts["failed"] += 1
                sequence.end(_named(error))
                sequence.release()
            self.waiting.remove(sequence)
            if sequence.state is SequenceState.ENDED:
                self.ended.append(sequence)
                continue
            begin(sequence)
            there.append(sequence)
            if lacking:
                lacking[0].passed += 1
        self._stuck = state if len(there) == len(running) and not self.ended else None

    def _state(self, running: Sequence[TokenSequence]) -> Hashable:
        """Return what decides who can be admitted."""
        prefilling = [sequence.written for sequence in running if sequence.state is SequenceState.PREFILL]
        pool = self._pool
        waiting, owned = (self._added, len(self.waiting)), pool.allocator.owned_slots()
        return waiting, len(running), tuple(prefilling), owned, len(pool.dropped), pool.generation

    def sweep(self) -> list[TokenSequence]:
        """Forget those that were cancelled, or ended without having run; return them."""
        for sequence in list(self.waiting):
            if sequence.cancelled:
                self._counts["cancelled"] += 1
                self.waiting.remove(sequence)
                sequence.end()
                self.ended.append(sequence)
        gone, self.ended = self.ended, []
        return gone

    def give_up(self, error: UserError) -> None:
        """End all: nothing can be run any more."""
        for sequence in self.waiting:
            sequence.end(error)
        self.ended += self.waiting
        self.waiting.clear()

    def share(self, sequence: TokenSequence) -> None:
        """Let later sequences read what a sequence has written so far, prompt and answer."""
        if sequence.context is None or sequence.lease is None:
            return
        with self._pool.lock:
            if not sequence.lease.lost:
                tokens = sequence.tokens[: min(sequence.written, sequence.known)]
                self._pool.prefixes.insert(sequence.context, tokens, sequence.lease.runs, sequence.shared_tokens)

    def _has_room(self, sequence: TokenSequence, running: Sequence[TokenSequence]) -> bool:
        """Give a sequence its slots; return whether there is room for it."""
        with self._pool.lock:
            sequence.check()
            match = self._known(sequence)
            shared = None if match is None else self._lease_of(match, sequence)
            length = 0 if shared is None else shared.slots
            wanted = sequence.prompt_length + sequence.new_tokens - length
            try:
                lease = self._pool.reserve(wanted, sequence.block) if wanted else None
            except MemoryLimitError:
                if running and wanted <= self._pool.allocator.slots:
                    return False  # somebody ends at some time
                raise
            sequence.admit(lease, shared)
        try:
            layout_of(sequence, self._buckets)
        except InputError:
            if not running:
                raise
            sequence.wait_again()
            return False  # the pool is in pieces: others end, and leave larger ones
        self._counts["prefix_hit_tokens"] += length
        if not sequence.pending:
            sequence.end()
        return True

    def _is_better_soon(self, sequence: TokenSequence, running: Sequence[TokenSequence]) -> bool:
        """Whether a prompt that is run now begins as this one does, for longer than what is known."""
        if sequence.context is None:
            return False
        known: int | None = None
        for other in running:
            if not other.has_begun and other.context == sequence.context:
                if known is None:
                    with self._pool.lock:
                        known = self._pool.prefixes.match(sequence.context, sequence.tokens, len(sequence.tokens)).length
                common = min(common_length(other.tokens, sequence.tokens), len(sequence.tokens) - 1)
                if common - known < WORTH_WAITING:
                    continue
                if other.written < common:
                    return True
                self.share(other)  # the rest of its prompt is nothing to this one
                return False
        return False

    def _known(self, sequence: TokenSequence) -> Match | None:
        """Return what of a prompt was written before, None where that is too little to be shared.

        The last token is run in any case where a token is sampled behind it.
        """
        if sequence.context is None:
            return None
        most = sequence.prompt_length - (1 if sequence.new_tokens else 0)
        match = self._pool.prefixes.match(sequence.context, sequence.tokens, most)
        return match if match.length >= max(sequence.least_shared, 1) else None

    def _lease_of(self, match: Match, sequence: TokenSequence) -> Lease:
        """Return a lease on shared slots, which are copied where they lie in many pieces."""
        shared = self._pool.hold(match.runs)
        if len(shared.runs) <= MOST_PIECES:
            return shared
        try:
            copy = compacted([shared], sequence.block)
        except MemoryLimitError:  # no room to copy them: they are read as they are
            return shared
        self._counts["compactions"] += 1
        self._pool.prefixes.move(match, copy.runs)
        return copy


def _named(error: Exception) -> Exception:
    """Return an error of the device as one that says what to do."""
    if not isinstance(error, UserError) and is_out_of_memory(error):
        return MemoryLimitError("the device has no memory to make room in the pool: keep fewer branches")
    return error
