"""Sequences come and go: who is admitted, who waits, and what the next step runs.

    submit ──> waiting ──> running: prefill ──> decode ──> ended
                 ^            |
                 |            `- a step writes the next tokens of some of them
                 |               and their listeners hear what was sampled
                 `- until there are free pages for a prompt and its answer,
                    or until a prompt that begins alike was run

Many threads submit, one drives: whoever waits for a sequence runs steps until another does.  So an
offline batch and a server are the same loop.

    lag 0   launch 1, collect 1, launch 2, collect 2
    lag 1   launch 1, launch 2, collect 1, launch 3, collect 2      the device never waits for the host

On a mesh the rows of a step are sharded over `data`,
and a sequence is in a row of the part that its block of the pool lies on.  Knows token ids alone.
"""

from __future__ import annotations

import collections
import concurrent.futures
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from psynth_jax.buckets import Buckets
from psynth_jax.engine.admission import Admission
from psynth_jax.engine.batch_runner import BatchRunner, Launched, token_of
from psynth_jax.engine.compilations import Compilations
from psynth_jax.engine.lane import Batch, Lane, layout_of
from psynth_jax.engine.programs import Programs
from psynth_jax.engine.sequences import SequenceState, Token, TokenSequence
from psynth_jax.errors import EngineError, MemoryLimitError
from psynth_jax.kv.pool import Pool
from psynth_jax.ops.branch_attention import Implementation

LONGEST_WAIT = 1.0  # seconds: an interrupt may keep who drives from telling that it does so no more
INTERRUPTED = "its keys and values are lost: what had been given those of all was interrupted, or failed; ask again"


class Scheduler:
    """Runs sequences over one pool.  Threads may share one.

    Attributes:
      counts: what it has done so far, by name.
      lag: 1 launches a step before the tokens of the last one are known; what follows the end of an
        answer is then run in vain.  0 does not.
    """

    def __init__(
        self,
        programs: Programs,
        pool: Pool,
        buckets: Buckets,
        implementation: Implementation = "auto",
        lag: int = 0,
    ):
        """Take what it runs with.  buckets: of one device."""
        assert lag in (0, 1)
        self.programs, self.pool = programs, pool
        self.batches = BatchRunner(programs, pool, buckets, implementation)
        self.counts = collections.Counter[str]()
        self.lag, self._buckets = lag, buckets
        self._launched: collections.deque[Launched] = collections.deque()  # not collected
        self._ended: collections.deque[TokenSequence] = collections.deque()  # to be told so
        self._admission = Admission(pool, buckets, self.counts, self._ended)
        self._lanes: dict[tuple[int, bool], Lane] = {}
        self._compilations = Compilations(programs)
        self._changed = threading.Condition()
        self._driven = False  # some thread runs a step
        self._submitted = 0

    def run(self, sequences: Sequence[TokenSequence], hear: Callable[[], None] | None = None) -> None:
        """Take some sequences to their end; others go on meanwhile.

        hear: called by this thread whenever its sequences may have new tokens.  What it raises ends
        them.

        Raises what ended a sequence, `MemoryLimitError` where the device has not enough memory, and
        `InputError` for a sequence that reads more runs than any program takes.
        """
        call = object()
        before = self.programs.waited

        def take_in() -> None:
            self.programs.set_waited(max([before, *(sequence.waited for sequence in sequences)]))
            if hear is not None:
                hear()
            for sequence in sequences:
                if sequence.error is not None:
                    raise sequence.error

        try:
            for sequence in sequences:
                self.submit(sequence, call)
            while not all(sequence.state is SequenceState.ENDED for sequence in sequences):
                self.advance()
                take_in()
            take_in()  # another thread may have ended them while this one heard
        except BaseException:
            for sequence in sequences:
                self.cancel(sequence)
                if sequence.state is SequenceState.ENDED:
                    sequence.release()  # what is raised keeps it, and must not keep its slots
            raise

    def submit(self, sequence: TokenSequence, call: Hashable = None) -> None:
        """Let a sequence wait for its turn; once, however often it is called.

        call: those that were submitted together wait together where a program is compiled.  None:
        it is alone.

        Raises `EngineError` where a step has failed for good.
        """
        with self._changed:
            if self.batches.dead is not None:
                raise EngineError(f"the engine has no memory for a new pool: {self.batches.dead}")
            if sequence.submitted or sequence.state is SequenceState.ENDED:
                return
            sequence.waited = sequence.waited_before = self.programs.waited
            sequence.call = object() if call is None else call
            self._admission.add(sequence)
            sequence.submitted = True
            self._submitted += 1
            self._changed.notify_all()

    def cancel(self, sequence: TokenSequence) -> None:
        """End a sequence and let go of its slots: now, or as soon as the thread that drives has run its step."""
        sequence.cancelled = True
        with self._changed:
            if not sequence.submitted:
                self._admission.never_added(sequence)
            if not self._driven:
                self._sweep()
            self._changed.notify_all()

    @property
    def running(self) -> int:
        """How many sequences have slots and have not ended."""
        return sum(len(lane.running) for lane in [*self._lanes.values()])

    def advance(self) -> None:
        """Run a step, or wait until the thread that runs one has done so."""
        is_driver, something_happened, submitted = False, True, 0
        try:
            with self._changed:
                if self._driven:
                    self._changed.wait(LONGEST_WAIT)
                    return
                is_driver = self._driven = True
                submitted = self._submitted
            something_happened = self._step()
        finally:
            if is_driver:
                self._driven = False  # before anything that an interrupt might come before
                self._leave(submitted, something_happened=something_happened)
        if not something_happened:
            self._wait_for_a_program(submitted)

    def _leave(self, submitted: int, *, something_happened: bool) -> None:
        """Wake those that wait for something that may have happened."""
        with self._changed:
            # Some may have been cancelled since the step has ended.
            some_left = not self._driven and self._sweep()
            if something_happened or some_left or self._submitted != submitted:
                self._changed.notify_all()

    def _step(self) -> bool:
        """Admit some, run their next tokens, and forget those that have ended; return whether anything happened."""
        before = self._progress()
        self._sweep()
        self._admit()
        has_run = self._run_some()
        self._sweep()
        return has_run or before != self._progress()

    def _progress(self) -> tuple[int, int, int]:
        return len(self._admission.waiting), self.running, len(self._compilations)

    def _wait_for_a_program(self, submitted: int) -> None:
        """Wait until a program is compiled, unless sequences have come meanwhile: they may have theirs."""
        with self._changed:
            if self._compilations.are_unfinished() and self._submitted == submitted:
                self._changed.wait(LONGEST_WAIT)

    def _tell_all(self, future: concurrent.futures.Future[Any]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _admit(self) -> None:
        """Admit who can be admitted."""
        running: list[TokenSequence] = []
        for lane in self._lanes.values():
            running += lane.running
        self._admission.admit(running, lambda sequence: self._lane_of(sequence).add(sequence))
        with self.pool.lock:  # another thread may be copying into the pool
            if not self.pool.heads.k.is_deleted():
                return
            try:
                self.batches.lose()  # a copy that went wrong has taken the pool with it
            except Exception as error:  # noqa: BLE001  all sequences are told
                self._give_up(error)

    def _run_some(self) -> bool:
        """Launch a batch, and take in all but the last `lag` of them; return whether there was anything to do."""
        had_launched = bool(self._launched)
        self._collect_all_but(self.lag)  # more are left where an interrupt came between
        self._end_compilations()
        batch = self._next_batch()
        if batch is not None:
            self._launch(batch)
        self._collect_all_but(0 if batch is None else self.lag)
        return batch is not None or had_launched

    def _collect_all_but(self, count: int) -> None:
        """Take in what was launched, but for the last `count` batches."""
        while len(self._launched) > count:
            self._collect(self._launched[0])
            self._launched.popleft()  # not before: an interrupted one is taken in again

    def _next_batch(self) -> Batch | None:
        """Return the next batch of the lane whose turn it is, of those whose programs are there."""
        for key, lane in [*self._lanes.items()]:
            while (batch := lane.next_batch(self._can_run)) is not None:
                if self._is_ready(lane, batch):
                    others = {each: other for each, other in self._lanes.items() if each != key}
                    self._lanes = others | {key: lane}  # the others are before it at the next step
                    return batch
                # Another batch of this lane may have its program.
        return None

    def _sweep(self) -> bool:
        """Forget sequences that have ended, were cancelled, or whose keys and values are lost; return whether any did."""
        self._admission.sweep()
        for key, lane in [*self._lanes.items()]:
            for sequence in lane.running:
                if sequence.state is not SequenceState.ENDED and sequence.cancelled:
                    self.counts["cancelled"] += 1
                    sequence.end()
                elif sequence.state is not SequenceState.ENDED and sequence.is_lost:
                    self.counts["failed"] += 1
                    sequence.end(MemoryLimitError(INTERRUPTED))
                    sequence.release()
                if sequence.cancelled:
                    sequence.release()
            lane.sweep(self._ended)
            if not lane.running:
                del self._lanes[key]
        some_ended = bool(self._ended)
        while self._ended:
            self._ended[0].tell_end()
            self._ended.popleft()  # not before: an interrupted one is told again
        self._forget_vain()
        return some_ended

    def _forget_vain(self) -> None:
        """Forget what was launched for sequences that have ended: while it holds them, they hold their slots."""
        while self._launched:
            sequences = self._launched[-1].batch.sequences
            if not all(sequence.state is SequenceState.ENDED for sequence in sequences):
                return
            self._launched.pop()

    def _lane_of(self, sequence: TokenSequence) -> Lane:
        # The arrays of a conditioning have no hash.  While a lane is here its sequences keep the
        # object.
        key = id(sequence.conditioning), sequence.targets is not None
        if key not in self._lanes:
            self._lanes[key] = Lane(self._buckets, self.programs.model.mesh, self.pool.allocator.blocks)
        return self._lanes[key]

    def _can_run(self, sequence: TokenSequence) -> bool:
        return sequence.can_go_on and not self._compilations.delay(sequence)

    def _is_ready(self, lane: Lane, batch: Batch) -> bool:
        """Whether a batch can run at once; else begin to compile its program, and let others go on meanwhile.

        Before the first token of all, decoding's program is compiled at the same time: a step that
        ran while the other is compiled would take longer, and its times would be wrong.
        """
        able = [sequence for sequence in lane.running if self._can_run(sequence)]
        wanted = [self.batches.shapes_of(batch)]
        if batch.tokens > 1 and all(sequence.state is SequenceState.PREFILL for sequence in able):
            go_on = [sequence for sequence in able if sequence.new_tokens > 1]
            if go_on:
                wanted.append(self.batches.shapes_of(lane.decode(able, batch.form)))
        missing = [call for call in wanted if not self.programs.is_there(call)]
        if not missing:
            return True
        futures = self._compilations.begin(missing, self._waiting_for(batch, able))
        for future in futures:
            future.add_done_callback(self._tell_all)
        if not self.pool.over_processes:
            return False
        concurrent.futures.wait(futures)  # all processes run the same steps in the same order
        self._end_compilations()
        return all(sequence.state is not SequenceState.ENDED for sequence in batch.sequences)

    def _waiting_for(self, batch: Batch, able: Sequence[TokenSequence]) -> list[TokenSequence]:
        """Return who waits for a batch's program: with a sequence all of its call.

        A batch is as wide as its widest row; where only some rows need that, the others go on
        without them.
        """
        rows = batch.sequences
        wide = [sequence for sequence in rows if layout_of(sequence, self._buckets) == batch.form.layout]
        calls = {sequence.call for sequence in wide or rows}
        return [sequence for sequence in able if sequence.call in calls]

    def _end_compilations(self) -> None:
        """Let sequences go on whose programs are there."""
        for sequence in self._compilations.end():
            self.counts["failed"] += 1
            sequence.release()
        self._sweep()

    def _launch(self, batch: Batch) -> None:
        """Let the device run a batch; its sequences fail with it."""
        try:
            launched = self.batches.launch(batch, self._launched[-1] if self._launched else None)
        except Exception as error:  # noqa: BLE001  whatever a step raises is raised by those that were in it
            self._failed(batch, error)
            return
        self._launched.append(launched)
        for part in launched.parts:
            # Row by row: those that an interrupt leaves out are run again.
            part.sequence.launched(part.length)
        kind = "decode_tokens" if batch.tokens == 1 else "prefill_tokens"
        self.counts[kind] += sum(part.length for part in launched.parts)

    def _collect(self, launched: Launched) -> None:
        """Take in what a batch has sampled, and give it to those that expect it."""
        if self.batches.is_lost(launched):
            return  # with all that its sequences have written
        try:
            result = self.batches.collect(launched)
        except Exception as error:  # noqa: BLE001  whatever a step raises is raised by those that were in it
            self._failed(launched.batch, error)
            return
        now = time.perf_counter()
        for row, sequence, first, length in launched.parts:
            if sequence.cancelled or sequence.state is SequenceState.ENDED:
                continue
            if launched.batch.is_scored:
                sequence.scored(first, result[row, :length])
            elif sequence.expects(first + length):
                self._hear(sequence, token_of(result, row, sequence.sampling.alternatives, now - sequence.waited))

    def _hear(self, sequence: TokenSequence, token: Token) -> None:
        """Let a sequence take a token; what it has written can be shared after the first, and when it has ended."""
        is_first = sequence.known == sequence.prompt_length
        sequence.take(token)
        if sequence.error is not None:
            self.counts["failed"] += 1
        elif is_first or sequence.state is SequenceState.ENDED:
            self._admission.share(sequence)

    def _failed(self, batch: Batch, error: Exception) -> None:
        """End the sequences of a batch whose step failed, and all others whose keys and values it took with it."""
        why = f"another step failed, and took the keys and values of all with it: {error}"
        inside = batch.sequences
        for lane in self._lanes.values():
            for sequence in lane.running:
                if sequence.state is SequenceState.ENDED:
                    continue
                if sequence in inside or sequence.is_lost:
                    self.counts["failed"] += 1
                    sequence.end(error if sequence in inside else MemoryLimitError(why))
                    sequence.release()
        if self.batches.dead is not None:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """End all sequences: there is no pool any more."""
        gone = EngineError(f"the engine has no memory for a new pool: {error}")
        for lane in self._lanes.values():
            for sequence in lane.running:
                sequence.end(gone)
                sequence.release()
        self._admission.give_up(gone)
