"""Sequences that can share a step, and which of them the next step runs.

    prefill   [ A: 512 ] [ A: 64 | . ] [ B C D: 64 each ]        as few padded tokens as the buckets allow
    decode    A B C D    A B C D    A . C D -> A C D             who ends leaves: the next step may be a smaller one

Prompts that come before anybody has decoded are run first.  Later ones take turns with decode
steps, in small chunks, so that nobody waits long for the next token.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from psynth_jax.buckets import Buckets
from psynth_jax.engine.sequences import SequenceState, TokenSequence
from psynth_jax.engine.step import Conditioning
from psynth_jax.engine.step_input import Layout
from psynth_jax.errors import InputError
from psynth_jax.sharding import DATA, ROW_AXES, shards


class Form(NamedTuple):
    """How the rows of a call are laid out: mesh axes, into how many parts those cut them, columns, and shapes."""

    row_axes: tuple[str, ...]
    parts: int
    layout: Layout
    buckets: Buckets


class Part(NamedTuple):
    """What a row of a batch runs: `length` tokens of a sequence, from its token `first` on."""

    row: int
    sequence: TokenSequence
    first: int
    length: int


class Batch(NamedTuple):
    """What one call runs: the next `tokens` tokens of the sequences in its rows (None: nobody is there)."""

    seated: list[TokenSequence | None]
    tokens: int
    form: Form

    @property
    def conditioning(self) -> Conditioning:
        """What its rows with a scale above 0 are run with."""
        return self.sequences[0].conditioning

    @property
    def is_scored(self) -> bool:
        """Whether given tokens are scored, and nothing is sampled."""
        return self.sequences[0].targets is not None

    @property
    def sequences(self) -> list[TokenSequence]:
        """Those that are in a row."""
        return [sequence for sequence in self.seated if sequence is not None]

    def parts(self) -> list[Part]:
        """Return what its rows run, as its sequences are now."""
        found = []
        for row, sequence in enumerate(self.seated):
            if sequence is not None:
                count = min(self.tokens, sequence.pending)
                found.append(Part(row, sequence, sequence.written, count))
        return found


class Lane:
    """Sequences with one conditioning, either all to be sampled or all to be scored.

    blocks: of the pool.
    """

    def __init__(self, buckets: Buckets, mesh: Mesh | None, blocks: int):
        """Begin with no sequence."""
        self.running: list[TokenSequence] = []
        self._buckets, self._mesh, self._blocks = buckets, mesh, blocks
        self._without_a_token: list[TokenSequence] = []  # all have had one before any has the next but one
        self._prefilled = False  # by the last batch

    def add(self, sequence: TokenSequence) -> None:
        """Let a sequence that was admitted take part, if it does not yet."""
        if sequence not in self.running:
            self.running.append(sequence)

    def sweep(self, ended: collections.deque[TokenSequence]) -> None:
        """Move those that have ended to `ended`."""
        left = []
        for sequence in self.running:
            if sequence.state is SequenceState.ENDED:
                ended.append(sequence)
            else:
                left.append(sequence)
        self.running = left

    def next_batch(self, can_run: Callable[[TokenSequence], bool]) -> Batch | None:
        """Return what the next call runs; None where no sequence can run."""
        able = [sequence for sequence in self.running if can_run(sequence)]
        if not able:
            return None
        form = self._form(able)
        prefilling = [sequence for sequence in able if sequence.state is SequenceState.PREFILL]
        decoding = [sequence for sequence in able if sequence.state is SequenceState.DECODE]
        begun = any(sequence.drawn > 1 for sequence in decoding)
        if prefilling and not (decoding and begun and self._prefilled):
            self._prefilled = True
            return self._prefill(prefilling, form, in_turns=begun)
        self._prefilled = False
        waiting = [sequence for sequence in self._without_a_token if sequence in decoding] or decoding
        batch = self.decode(waiting, form)
        self._without_a_token = [sequence for sequence in waiting if sequence not in batch.seated]
        return batch

    def _prefill(self, prefilling: Sequence[TokenSequence], form: Form, *, in_turns: bool) -> Batch:
        """Return the next chunk of some prompts.  in_turns: others wait for a token."""
        most = form.buckets.chunk_between_tokens if in_turns else None
        rows, tokens = form.buckets.chunk_of([sequence.pending for sequence in prefilling], most)
        return Batch(self._seated(prefilling, rows, form.parts), tokens, form)

    def decode(self, decoding: Sequence[TokenSequence], form: Form) -> Batch:
        """Return the next token of as many sequences as fit."""
        return Batch(self._seated(decoding, form.buckets.rows_of(len(decoding)), form.parts), 1, form)

    def _form(self, sequences: Sequence[TokenSequence]) -> Form:
        """Return the smallest layout that has room for what each of some sequences reads, and how rows are sharded."""
        branches = self._buckets.branches_of(max(len(sequence.branches) for sequence in sequences))
        layout = Layout(branches, self._buckets.runs_of(branches, max(sequence.runs for sequence in sequences)))
        axes: tuple[str, ...] = ()
        if self._mesh is not None:
            # Where no row reads another block than its own, rows are sharded over `branch`, too:
            # nothing is merged.
            at_home = all(sequence.reads_its_block_only for sequence in sequences)
            axes = ROW_AXES if at_home else (DATA,)
        parts = shards(self._mesh, axes)
        return Form(axes, parts, layout, dataclasses.replace(self._buckets, data=parts))

    def _seated(self, waiting: Sequence[TokenSequence], rows: int, parts: int) -> list[TokenSequence | None]:
        """Give each of some sequences, in their order, a row of the part that its block lies on; rows may stay empty."""
        seated: list[TokenSequence | None] = [None] * rows
        size = rows // parts
        taken = [0] * parts
        for sequence in waiting:
            part = sequence.part(parts, self._blocks)
            if taken[part] < size:
                seated[part * size + taken[part]] = sequence
                taken[part] += 1
        return seated


def layout_of(sequence: TokenSequence, buckets: Buckets) -> Layout:
    """Return the smallest layout that has room for what a sequence reads.

    Raises `InputError` where it reads more pieces of caches than any program takes.
    """
    branches = buckets.branches_of(len(sequence.branches))
    runs = buckets.runs_of(branches, sequence.runs)
    if not runs:
        raise InputError(
            f"a question reads {sequence.runs} pieces of caches: of {branches - 1} branches, fewer are possible"
        )
    return Layout(branches, runs)
