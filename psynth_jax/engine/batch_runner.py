"""What a batch tells its program, and what becomes of the pool.

    batch -> tokens, slots, rows [B, X] -> step or score -> results on the host
                                             `- the pool is donated, and comes back written

Whatever fails in between may have taken the pool with it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from psynth_jax.axes import HostArray
from psynth_jax.buckets import Buckets
from psynth_jax.cache import cache_spec
from psynth_jax.engine.lane import Batch, Form
from psynth_jax.engine.programs import Program, ProgramCall, Programs
from psynth_jax.engine.step import Conditioning, score, step
from psynth_jax.engine.step_input import Layout, packed
from psynth_jax.errors import MemoryLimitError, is_out_of_memory
from psynth_jax.kv.pool import Pool
from psynth_jax.nn.decoder import Decoder
from psynth_jax.ops.branch_attention import Implementation
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.sharding import put, replicated, shards

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
        self.dead: BaseException | None = None

    def shapes(
        self, conditioning: Conditioning, rows: int, tokens: int, layout: Layout, row_axes: tuple[str, ...]
    ) -> ProgramCall:
        """Return a step to be compiled.  rows: of each part that `row_axes` cut a batch into."""
        rows *= shards(self._mesh, row_axes)
        form = Form(row_axes, 1, layout, self._buckets)
        return self._call(STEP, form, conditioning, self._shape(rows, layout.width + 2 * tokens))

    def shapes_of(self, batch: Batch) -> ProgramCall:
        """Return the call of a batch to be compiled: with shapes for its arrays."""
        rows, tokens, form = len(batch.seated), batch.tokens, batch.form
        shape = self._shape(rows, form.layout.width + 2 * tokens)
        if batch.is_scored:
            return self._call(SCORE, form, batch.conditioning, shape, self._shape(rows, tokens))
        return self._call(STEP, form, batch.conditioning, shape)

    def run(self, batch: Batch) -> Any:
        """Run a batch; return on the host what its program returns beside the pool.

        Raises `MemoryLimitError` where the device has not enough memory, or what a sequence reads
        is lost.
        """
        inputs: list[Any] = [_packed(batch), _targets(batch)] if batch.is_scored else [_packed(batch)]
        if self._mesh is not None:
            inputs = [put(each, replicated(self._mesh)) for each in inputs]
        program = SCORE if batch.is_scored else STEP
        call = self._call(program, batch.form, batch.conditioning, *inputs)
        pool = self._pool
        with pool.lock:
            for _, sequence, _ in batch.taken():
                sequence.check()
            generation = pool.generation
            call = dataclasses.replace(call, args=(batch.conditioning, pool.heads, *inputs))
            try:
                heads, result = self._programs.run(call)
                pool.replace(heads)
            except BaseException:  # an interrupt, too, may come when the old buffer is gone
                if pool.heads.k.is_deleted():
                    self.lose()
                raise
        try:
            return jax.device_get(result)
        except jax.errors.JaxRuntimeError as error:
            # It failed after it was dispatched, and the pool that it was to write fails with it.
            with pool.lock:
                if pool.generation == generation:
                    self.lose()
            if is_out_of_memory(error):
                told = f"the device has not enough memory for this call: use {program.less_memory}"
                raise MemoryLimitError(told) from None
            raise

    def _shape(self, *shape: int) -> jax.ShapeDtypeStruct:
        sharding = None if self._mesh is None else replicated(self._mesh)
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

    def _call(self, program: Program, form: Form, conditioning: Conditioning, *inputs: Any) -> ProgramCall:
        """Return a call of a program: the pool is there as shapes."""
        static = {"layout": form.layout, "row_axes": form.row_axes, "implementation": self._implementation}
        return ProgramCall(program, (conditioning, self._pool.shapes(), *inputs), static)

    def lose(self) -> None:
        """Begin with an empty pool; where there is no memory for one, nothing can run any more."""
        try:
            self._pool.lose()
        except BaseException as error:
            self.dead = error
            raise


def _packed(batch: Batch) -> HostArray:
    """Return what a batch tells its program."""
    rows, tokens, layout = len(batch.seated), batch.tokens, batch.form.layout
    new = np.zeros((rows, tokens), np.int32)
    # Another slot for every token, nowhere too: the write promises that no index is given twice.
    slots = NOWHERE + np.arange(rows * tokens, dtype=np.int32).reshape(rows, tokens)
    of_rows = [layout.idle_row()] * rows
    for row, sequence, count in batch.taken():
        new[row, :count] = sequence.next_tokens(count)
        slots[row, :count] = sequence.slots(count)
        of_rows[row] = sequence.row(layout, count)
    return packed(of_rows, new, slots)


def _targets(batch: Batch) -> HostArray:
    """Return the tokens `[B, T]` that are to be scored behind each of the batch's."""
    wanted = np.zeros((len(batch.seated), batch.tokens), np.int32)
    for row, sequence, count in batch.taken():
        assert sequence.targets is not None
        wanted[row, :count] = sequence.targets[sequence.written : sequence.written + count]
    return wanted
