"""Sequences through the engine: prompts in chunks, then a token a step, until all have ended.

    prefill   [ A: 512 ] [ A: 64 | . ] [ B C D: 64 each ]        as few padded tokens as the buckets allow
    decode    A B C D    A B C D    A . C D -> A C D             who ends leaves: the next step may be a smaller one

On a mesh the rows of a step are sharded over `data`, and a sequence is in a row of the part that its block of the pool lies
on.  Where no sequence reads another block than its own (workers do not), rows are sharded over `branch` too, and nothing is
merged.  Knows token ids alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from psynth_jax.axes import HostArray
from psynth_jax.buckets import Buckets
from psynth_jax.cache import cache_spec
from psynth_jax.engine.programs import Program, ProgramCall, Programs
from psynth_jax.engine.sampling import Sampled
from psynth_jax.engine.sequences import SequenceState, TokenSequence
from psynth_jax.engine.step import Conditioning, score, step
from psynth_jax.engine.step_input import Layout, packed
from psynth_jax.errors import InputError, MemoryLimitError, is_out_of_memory
from psynth_jax.kv.pool import Pool
from psynth_jax.nn.decoder import Decoder
from psynth_jax.ops.branch_attention import Implementation
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.sharding import DATA, ROW_AXES, put, replicated, shards

LESS_MEMORY = "fewer or shorter branches, fewer rows at once, a lower max_new_tokens, or dtype bfloat16"
STATIC = ("layout", "row_axes", "implementation")
NOWHERE = 1 << 30  # a slot beyond every pool: what belongs there is dropped


def _out_shardings(
    model: Decoder, conditioning: Conditioning, heads: CachedHeads, *inputs: Any, **static: Any
) -> tuple[NamedSharding, NamedSharding]:
    """Return where results lie on the model's mesh: the pool as it was, all else whole on every device."""
    assert model.mesh is not None
    return NamedSharding(model.mesh, cache_spec(heads.placement)), replicated(model.mesh)


STEP = Program(step, static=STATIC, donated=("heads",), out_shardings=_out_shardings, less_memory=LESS_MEMORY)
SCORE = Program(score, static=STATIC, donated=("heads",), out_shardings=_out_shardings, less_memory=LESS_MEMORY)


class Form(NamedTuple):
    """How the rows of a call are laid out: mesh axes, into how many parts those cut them, columns, and shapes."""

    row_axes: tuple[str, ...]
    parts: int
    layout: Layout
    buckets: Buckets


class Scheduler:
    """Runs sequences over one pool."""

    def __init__(self, programs: Programs, pool: Pool, buckets: Buckets, implementation: Implementation = "auto"):
        """Take what it runs with.  buckets: of one device."""
        self.programs = programs
        self.pool = pool
        self.buckets = buckets
        self.implementation: Implementation = implementation
        self.mesh = programs.model.mesh

    def run(self, sequences: Sequence[TokenSequence], conditioning: Conditioning) -> None:
        """Take all sequences to their end, telling their listeners of every token.

        What a listener raises ends the call.  Raises `MemoryLimitError` where the device has not enough memory, and
        `InputError` for a sequence that reads more runs than any program takes.
        """
        form = self._form(sequences)
        prefilling = list(sequences)
        while prefilling:
            rows, tokens = form.buckets.chunk_of([len(sequence.pending) for sequence in prefilling])
            self._step(_seated(prefilling, rows, form.parts), tokens, form, conditioning)
            prefilling = _in_state(prefilling, SequenceState.PREFILL)
        decoding = _in_state(sequences, SequenceState.DECODE)
        while decoding:
            # One token for every sequence, in as many calls as that takes.
            left = decoding
            while left:
                seated = _seated(left, form.buckets.rows_of(len(left)), form.parts)
                self._step(seated, 1, form, conditioning)
                left = [sequence for sequence in left if sequence not in seated]
            decoding = _in_state(decoding, SequenceState.DECODE)

    def score(
        self, sequences: Sequence[TokenSequence], targets: Sequence[Sequence[int]], conditioning: Conditioning
    ) -> list[HostArray]:
        """Run all prompts and return the log-probability of the token that follows each of their tokens.

        targets: as many tokens for every sequence as its prompt has.
        """
        form = self._form(sequences)
        follows = dict(zip(sequences, targets, strict=True))
        found: dict[TokenSequence, list[HostArray]] = {sequence: [] for sequence in sequences}
        left = list(sequences)
        while left:
            rows, tokens = form.buckets.chunk_of([len(sequence.pending) for sequence in left])
            seated = _seated(left, rows, form.parts)
            wanted = np.zeros((rows, tokens), np.int32)
            for row, sequence, count in _taken(seated, tokens):
                wanted[row, :count] = follows[sequence][sequence.written : sequence.written + count]
            logprobs = self._run(SCORE, seated, tokens, form, conditioning, wanted)
            for row, sequence, count in _taken(seated, tokens):
                found[sequence].append(logprobs[row, :count])
                sequence.wrote(count)
            left = [sequence for sequence in left if sequence.pending]
        return [np.concatenate(found[sequence]) for sequence in sequences]

    def _step(self, seated: Sequence[TokenSequence | None], tokens: int, form: Form, conditioning: Conditioning) -> None:
        """Run the next tokens of some sequences, and give what was sampled to those that have no other token left."""
        sampled: Sampled = self._run(STEP, seated, tokens, form, conditioning)
        for _, sequence, count in _taken(seated, tokens):
            sequence.wrote(count)
        # Listeners may raise: by now every sequence knows what it has in the pool.
        for row, waiting in enumerate(seated):
            if waiting is not None and not waiting.pending:
                waiting.take(int(sampled.token[row]), float(sampled.logprob[row]), float(sampled.margin[row]))

    def _run(
        self,
        program: Program,
        seated: Sequence[TokenSequence | None],
        tokens: int,
        form: Form,
        conditioning: Conditioning,
        *more: HostArray,
    ) -> Any:
        """Run one program on the next tokens of some sequences; return what it returns beside the pool, on the host."""
        rows = len(seated)
        new = np.zeros((rows, tokens), np.int32)
        # Another slot for every token, nowhere too: the write promises that no index is given twice.
        slots = NOWHERE + np.arange(rows * tokens, dtype=np.int32).reshape(rows, tokens)
        of_rows = [form.layout.idle_row()] * rows
        for row, sequence, count in _taken(seated, tokens):
            new[row, :count] = sequence.pending[:count]
            slots[row, :count] = sequence.slots(count)
            of_rows[row] = sequence.row(form.layout, count)
        static = {"layout": form.layout, "row_axes": form.row_axes, "implementation": self.implementation}
        inputs: tuple[Any, ...] = (packed(of_rows, new, slots), *more)
        if self.mesh is not None:
            inputs = tuple(put(each, replicated(self.mesh)) for each in inputs)
        # Compiled before the lock is taken: other threads go on.
        self.programs.get(ProgramCall(program, (conditioning, self.pool.heads, *inputs), static))
        with self.pool.lock:
            for _, sequence, _ in _taken(seated, tokens):
                sequence.check()
            generation = self.pool.generation
            call = ProgramCall(program, (conditioning, self.pool.heads, *inputs), static)
            try:
                heads, result = self.programs.run(call)
                self.pool.replace(heads)
            except BaseException:  # an interrupt, too, may come when the old buffer is gone
                if self.pool.heads.k.is_deleted():
                    self.pool.lose()
                raise
        try:
            return jax.device_get(result)
        except jax.errors.JaxRuntimeError as error:
            # It failed after it was dispatched, and the pool that it was to write fails with it.
            with self.pool.lock:
                if self.pool.generation == generation:
                    self.pool.lose()
            if is_out_of_memory(error):
                told = f"the device has not enough memory for this call: use {program.less_memory}"
                raise MemoryLimitError(told) from None
            raise

    def _form(self, sequences: Sequence[TokenSequence]) -> Form:
        """Return the smallest layout that has room for what every sequence reads, and how rows are sharded."""
        branches = self.buckets.branches_of(max(len(sequence.branches) for sequence in sequences))
        most = max(sequence.runs for sequence in sequences)
        runs = self.buckets.runs_of(branches, most)
        if not runs:
            raise InputError(f"a question reads {most} pieces of caches: of {branches - 1} branches, fewer are possible")
        axes: tuple[str, ...] = ()
        if self.mesh is not None:
            at_home = all(sequence.reads_its_block_only for sequence in sequences)
            axes = ROW_AXES if at_home else (DATA,)
        parts = shards(self.mesh, axes)
        return Form(axes, parts, Layout(branches, runs), dataclasses.replace(self.buckets, data=parts))


def _seated(waiting: Sequence[TokenSequence], rows: int, parts: int) -> list[TokenSequence | None]:
    """Give each of some sequences, in their order, a row of the part that its block lies on; rows may stay empty."""
    seated: list[TokenSequence | None] = [None] * rows
    size = rows // parts
    taken = [0] * parts
    for sequence in waiting:
        part = sequence.part(parts)
        if taken[part] < size:
            seated[part * size + taken[part]] = sequence
            taken[part] += 1
    return seated


def _taken(seated: Sequence[TokenSequence | None], tokens: int) -> list[tuple[int, TokenSequence, int]]:
    """Return (row, sequence, how many of its pending tokens a call with `tokens` tokens a row takes)."""
    found = []
    for row, sequence in enumerate(seated):
        if sequence is not None:
            found.append((row, sequence, min(tokens, len(sequence.pending))))
    return found


def _in_state(sequences: Sequence[TokenSequence], state: SequenceState) -> list[TokenSequence]:
    return [sequence for sequence in sequences if sequence.state is state]
