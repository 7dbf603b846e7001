"""What a batch tells its program, and what becomes of the pool.

    launch    batch -> tokens, slots, rows [B, X] -> step or score -> results on the device
                                                       `- the pool is donated, and comes back written
    collect   results on the host

What is launched next can run before the host has collected: it takes its tokens from the results.
Whatever fails in between may have taken the pool with it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from psynth_jax.axes import HostArray
from psynth_jax.buckets import Buckets
from psynth_jax.cache import cache_spec
from psynth_jax.engine.lane import Batch, Form, Part
from psynth_jax.engine.programs import Program, ProgramCall, Programs
from psynth_jax.engine.sampling import Sampled
from psynth_jax.engine.sequences import UNKNOWN, Token, TokenSequence
from psynth_jax.engine.step import Conditioning, score, step
from psynth_jax.engine.step_input import Layout, packed
from psynth_jax.errors import MemoryLimitError, is_out_of_memory
from psynth_jax.kv.pool import Pool
from psynth_jax.nn.decoder import Decoder
from psynth_jax.ops.branch_attention import Implementation
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.sharding import ROW_AXES, put, replicated, shards

LESS_MEMORY = "fewer or shorter branches, fewer rows at once, a lower max_new_tokens, or dtype bfloat16"
STATIC = ("layout", "row_axes", "implementation")
NOWHERE = 1 << 30  # a slot beyond every pool: what belongs there is dropped


def _of_step(
    model: Decoder, conditioning: Conditioning, heads: CachedHeads, *inputs: Any, **static: Any
) -> tuple[NamedSharding, ...]:
    """Return where results lie on the model's mesh: the pool as it was, all else whole on every device."""
    assert model.mesh is not None
    whole = replicated(model.mesh)
    return NamedSharding(model.mesh, cache_spec(heads.placement)), whole, whole


def _of_score(*args: Any, **static: Any) -> tuple[NamedSharding, ...]:
    return _of_step(*args, **static)[:2]


STEP = Program(step, static=STATIC, donated=("heads",), out_shardings=_of_step, less_memory=LESS_MEMORY)
SCORE = Program(score, static=STATIC, donated=("heads",), out_shardings=_of_score, less_memory=LESS_MEMORY)


class Launched(NamedTuple):
    """A batch that the device runs.

    parts: what its rows run.  result: on the device: what was sampled, or log-probabilities.
    sampled: on the device: the token of each row, for the next step; of a batch that is scored no
      token of its own.
    generation: of the pool that it writes to.
    """

    batch: Batch
    parts: list[Part]
    result: Any
    sampled: Any
    generation: int

    def row_of(self, sequence: TokenSequence) -> int:
        """Return the row that a sequence is in."""
        return self.batch.seated.index(sequence)


class BatchRunner:
    """Runs batches over one pool.

    Attributes:
      dead: why there is no pool any more, None as long as there is one.
    """

    def __init__(self, programs: Programs, pool: Pool, buckets: Buckets, implementation: Implementation):
        """Take what it runs with."""
        self._programs, self._pool, self._buckets = programs, pool, buckets
        self._implementation: Implementation = implementation
        self._mesh = programs.model.mesh
        # For a step that takes no token of the one before it.
        self._none_sampled: Any = self._numbers(np.zeros(most_rows(buckets, self._mesh), np.int32))
        self.dead: BaseException | None = None

    def shapes(
        self, conditioning: Conditioning, rows: int, tokens: int, layout: Layout, row_axes: tuple[str, ...]
    ) -> ProgramCall:
        """Return a step to be compiled.  rows: of each part that `row_axes` cut a batch into."""
        rows *= shards(self._mesh, row_axes)
        form = Form(row_axes, 1, layout, self._buckets)
        return self._step_shapes(form, conditioning, rows, tokens)

    def shapes_of(self, batch: Batch) -> ProgramCall:
        """Return the call of a batch to be compiled: with shapes for its arrays."""
        rows, tokens, form = len(batch.seated), batch.tokens, batch.form
        if not batch.is_scored:
            return self._step_shapes(form, batch.conditioning, rows, tokens)
        shape = self._shape(rows, form.layout.width + 2 * tokens)
        return self._call(SCORE, form, batch.conditioning, shape, self._shape(rows, tokens))

    def launch(self, batch: Batch, before: Launched | None = None) -> Launched:
        """Let the device run a batch.

        before: what was launched last, if it was not collected: a sequence may go on with a token
        that was sampled there.

        Raises `MemoryLimitError` where the device has not enough memory, or what a sequence reads
        is lost.
        """
        rows = self._numbers(_packed(batch, before))
        sampled = self._none_sampled if before is None else before.sampled
        if batch.is_scored:
            call = self._call(SCORE, batch.form, batch.conditioning, rows, self._numbers(_targets(batch)))
        else:
            call = self._call(STEP, batch.form, batch.conditioning, sampled, rows)
        parts, pool = batch.parts(), self._pool
        with pool.lock:
            for sequence in batch.sequences:
                sequence.check()
            conditioning, _, *inputs = call.args
            call = dataclasses.replace(call, args=(conditioning, pool.heads, *inputs))
            try:
                results = self._programs.run(call)
                pool.replace(results[0])
            except BaseException:  # an interrupt, too, may come when the old buffer is gone
                if pool.heads.k.is_deleted():
                    self.lose()
                raise
            if not batch.is_scored:
                sampled = results[1]
            return Launched(batch, parts, results[-1], sampled, pool.generation)

    def is_lost(self, launched: Launched) -> bool:
        """Whether the pool that a batch writes to was lost since it was launched."""
        return launched.generation != self._pool.generation

    def collect(self, launched: Launched) -> Any:
        """Return on the host what a batch's program returns beside the pool.

        Raises as `launch` does: some devices fail after a program was launched.
        """
        try:
            return jax.device_get(launched.result)
        except jax.errors.JaxRuntimeError as error:
            # The pool that it was to write has failed with it.
            with self._pool.lock:
                if not self.is_lost(launched):
                    self.lose()
            if is_out_of_memory(error):
                told = f"the device has not enough memory for this call: use {LESS_MEMORY}"
                raise MemoryLimitError(told) from None
            raise

    def _numbers(self, numbers: HostArray) -> Any:
        return numbers if self._mesh is None else put(numbers, replicated(self._mesh))

    def _shape(self, *shape: int) -> jax.ShapeDtypeStruct:
        sharding = None if self._mesh is None else replicated(self._mesh)
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

    def _step_shapes(self, form: Form, conditioning: Conditioning, rows: int, tokens: int) -> ProgramCall:
        shape = self._shape(rows, form.layout.width + 2 * tokens)
        return self._call(STEP, form, conditioning, self._shape(*self._none_sampled.shape), shape)

    def _call(self, program: Program, form: Form, conditioning: Conditioning, *inputs: Any) -> ProgramCall:
        """Return a call of a program: the pool is there as shapes."""
        static = {"layout": form.layout, "row_axes": form.row_axes, "implementation": self._implementation}
        return ProgramCall(program, (conditioning, self._pool.shapes(), *inputs), static)

    def lose(self) -> None:
        """Begin with an empty pool; where there is no memory for one, nothing can run any more."""
        try:
            self._pool.lose()
        except Exception as error:  # of any kind: JAX has no class for a device without memory
            self.dead = error
            raise


def most_rows(buckets: Buckets, mesh: Mesh | None) -> int:
    """Return the rows of the largest call.  buckets: of one device."""
    prefill = max(rows for rows, _ in buckets.prefill)
    return max(buckets.most_rows, prefill) * shards(mesh, ROW_AXES)


def _packed(batch: Batch, before: Launched | None) -> HostArray:
    """Return what a batch tells its program."""
    rows, tokens, layout = len(batch.seated), batch.tokens, batch.form.layout
    new = np.zeros((rows, tokens), np.int32)
    # Another slot for every token, nowhere too: the write promises that no index is given twice.
    slots = NOWHERE + np.arange(rows * tokens, dtype=np.int32).reshape(rows, tokens)
    of_rows = [layout.idle_row()] * rows
    for row, sequence, _, count in batch.parts():
        new[row, :count] = sequence.next_tokens(count)
        slots[row, :count] = sequence.slots(count)
        sampled_in = -1
        if new[row, 0] == UNKNOWN:
            assert before is not None
            sampled_in = before.row_of(sequence)
        of_rows[row] = sequence.row(layout, count, sampled_in)
    return packed(of_rows, new, slots)


def _targets(batch: Batch) -> HostArray:
    """Return the tokens `[B, T]` that are to be scored behind each of the batch's."""
    wanted = np.zeros((len(batch.seated), batch.tokens), np.int32)
    for row, sequence, first, count in batch.parts():
        assert sequence.targets is not None
        wanted[row, :count] = sequence.targets[first : first + count]
    return wanted


def token_of(sampled: Sampled, row: int, alternatives: int, at: float) -> Token:
    """Return what was sampled for a row.  alternatives, at: see `Token`."""
    likely = sampled.likely[row, :alternatives].tolist()
    logprobs = sampled.likely_logprobs[row, :alternatives].tolist()
    return Token(
        int(sampled.token[row]),
        float(sampled.logprob[row]),
        float(sampled.margin[row]),
        at,
        tuple(zip(likely, logprobs, strict=True)),
    )
