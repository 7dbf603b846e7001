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

    counts: takes what is counted.  ended: takes those that end without having run.
    """

    def __init__(
        self,
        pool: Pool,
        buckets: Buckets,
        counts: collections.Counter[str],
        ended: collections.deque[TokenSequence],
    ):
        """Begin with nobody."""
        self.waiting: collections.deque[TokenSequence] = collections.deque()
        self._ended = ended
        self._added = 0
        self._stuck: Hashable = None
        self._pool, self._buckets, self._counts = pool, buckets, counts

    def add(self, sequence: TokenSequence) -> None:
        """Let a sequence wait."""
        self.waiting.append(sequence)
        self._added += 1

    def never_added(self, sequence: TokenSequence) -> None:
        """End a sequence that was cancelled before it waited."""
        if sequence.state is not SequenceState.ENDED:
            self._counts["cancelled"] += 1
            sequence.end()
            self._ended.append(sequence)

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
        some_ended = False
        for sequence in list(self.waiting):
            if len(lacking) >= MOST_PASSES or (lacking and lacking[0].passed >= MOST_PASSES):
                break
            if sequence.state is SequenceState.WAITING:
                self._try(sequence, there, lacking)
            if sequence.state is SequenceState.WAITING:
                continue
            # Into the next list before it is taken out of this one: an interrupt may come between.
            if sequence.state is SequenceState.ENDED:
                self._ended.append(sequence)
                some_ended = True
            else:
                begin(sequence)
                there.append(sequence)
                if lacking:
                    lacking[0].passed += 1
            self.waiting.remove(sequence)
        self._stuck = state if len(there) == len(running) and not some_ended else None

    def _try(self, sequence: TokenSequence, there: Sequence[TokenSequence], lacking: list[TokenSequence]) -> None:
        """Admit a sequence, if there is room: it waits no longer then.

        there: those that run.  lacking: takes it where there is none.
        """
        try:
            if not self._is_better_soon(sequence, there) and not self._give_room(sequence, there):
                lacking.append(sequence)
        except UserError as error:
            self._fail(sequence, error.with_traceback(None))  # its frames would keep what they hold
        except Exception as error:  # noqa: BLE001  a failing copy ends whom it was for
            self._fail(sequence, _named(error))
        except BaseException:
            if sequence.state is SequenceState.PREFILL:
                sequence.wait_again()  # it may be half admitted
            raise

    def _fail(self, sequence: TokenSequence, error: Exception) -> None:
        self._counts["failed"] += 1
        sequence.end(error)
        sequence.release()

    def _state(self, running: Sequence[TokenSequence]) -> Hashable:
        """Return what decides who can be admitted."""
        prefilling = [sequence.written for sequence in running if sequence.state is SequenceState.PREFILL]
        pool = self._pool
        waiting, owned = (self._added, len(self.waiting)), pool.allocator.owned_slots()
        # Each of several processes drops on its own; all must try at the same time.
        dropped = 0 if pool.over_processes else len(pool.dropped)
        return waiting, len(running), tuple(prefilling), owned, dropped, pool.generation

    def sweep(self) -> None:
        """End those that were cancelled."""
        for sequence in list(self.waiting):
            if sequence.cancelled:
                self._counts["cancelled"] += 1
                sequence.end()
                self._ended.append(sequence)
                self.waiting.remove(sequence)

    def give_up(self, error: UserError) -> None:
        """End all: nothing can be run any more."""
        for sequence in self.waiting:
            sequence.end(error)
        self._ended += self.waiting
        self.waiting.clear()

    def share(self, sequence: TokenSequence) -> None:
        """Let later sequences read what a sequence has written so far, prompt and answer."""
        if sequence.context is None:
            return
        with self._pool.lock:
            lease = sequence.lease  # whoever waits for it may be releasing it
            if lease is not None and not lease.lost:
                tokens = sequence.tokens[: min(sequence.written, sequence.known)]
                self._pool.prefixes.insert(sequence.context, tokens, lease.runs, sequence.shared_tokens)

    def _give_room(self, sequence: TokenSequence, running: Sequence[TokenSequence]) -> bool:
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
                if shared is not None:
                    shared.release()  # what is raised keeps it
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
        # To make room for the copy, a part of what was matched may have been evicted.
        assert sequence.context is not None
        still = self._pool.prefixes.match(sequence.context, sequence.tokens, match.length)
        if still.length == match.length:
            self._pool.prefixes.move(still, copy.runs)
        return copy


def _named(error: Exception) -> Exception:
    """Return an error of the device as one that says what to do."""
    if is_out_of_memory(error):
        return MemoryLimitError("the device has no memory to make room in the pool: keep fewer branches")
    return error
