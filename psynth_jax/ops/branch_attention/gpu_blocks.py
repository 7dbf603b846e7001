"""What the GPU kernels, forward and backward, have in common: operands, the work of a program, and how it is walked.

    grid  (T * G / rows, K, B, splits)       a program has one block of query rows and a share of its row's steps

A step reads up to `slots` slots of a segment, from its first slot on; all the steps of a query row, over all sources, are
numbered, and a split takes an equal share of those that are there, wherever segments begin or end:

    segments   | s s s s s s s | s s | s s s s s |       steps of 2 slots
    steps        0   1   2   3   4     5   6   7
    splits       0 . . . . . . . 1 . . . . . . . .       2 splits of 4 steps

Whole caches are operands, in global memory, and a program reads what it needs with a pointer and a mask: no block of a cache
is brought in by the grid.  Rows of a query block are (token, head of the group), token first, so grouped heads share a key.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from psynth_jax.axes import Array
from psynth_jax.ops.branch_attention.differentiable import Inputs
from psynth_jax.ops.branch_attention.gpu_tiles import GpuTiles
from psynth_jax.ops.branch_attention.types import Runs
from psynth_jax.ops.branch_attention.worklist import joined_runs, new_tokens, query_position
from psynth_jax.ops.cached_heads import CachedHeads

LOG2E = math.log2(math.e)  # weights are powers of two: one instruction on a GPU
MASKED = -1e30  # a logit that counts for nothing; -inf would make NaN of -inf - -inf
WIDTHS = (32, 64, 128, 256)
_QUERY_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Call:
    """What is known of a call when it is traced.

    scale: of the logits.  group, tokens, width: G, T and H.  columns: runs of each source.
    windowed: whether queries see a window only.

    Source 0 is the new tokens, then come the parts of the context.
    """

    scale: float
    group: int
    tokens: int
    width: int
    tiles: GpuTiles
    columns: tuple[int, ...]
    windowed: bool

    @property
    def rows(self) -> int:
        """All the query rows of a key/value head."""
        return self.tokens * self.group

    def mapped(self, source: int) -> bool:
        """Whether a source is part of the context, and so has a rotation and mapper scalars."""
        return source > 0

    def to_rows(self, heads: Array) -> Array:
        """Lay `[B, T, N, ...]` out as rows `[B, K, M, ...]`."""
        batch, tokens, count, *tail = heads.shape
        grouped = heads.reshape(batch, tokens, count // self.group, self.group, *tail)
        return jnp.moveaxis(grouped, 1, 2).reshape(batch, count // self.group, tokens * self.group, *tail)

    def from_rows(self, rows: Array) -> Array:
        """Return rows `[B, K, M, ...]` as `[B, T, N, ...]`."""
        batch, kv_heads, _, *tail = rows.shape
        spread = jnp.moveaxis(rows.reshape(batch, kv_heads, self.tokens, self.group, *tail), 1, 2)
        return spread.reshape(batch, self.tokens, kv_heads * self.group, *tail)

    def pallas_call(self, kernel: Any, grid: tuple[int, ...], out_shape: Any, name: str, *, interpret: bool) -> Any:
        """Build a kernel all of whose operands and results stay in global memory."""
        params = plgpu.CompilerParams(num_warps=self.tiles.warps, num_stages=self.tiles.stages)
        return pl.pallas_call(kernel, grid=grid, out_shape=out_shape, compiler_params=params, interpret=interpret, name=name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operands:
    """What every kernel takes; inside of a kernel, the same with references.

    rows `[B, K, M, H]`: queries.  k, v `[B, T, K, H]`: the new tokens.  cached: the other sources.  layer `[1]`.
    cos, sin `[B, W, H/2]`, scalars `[L, B, W, 4]`: of the context, None without one.
    runs `[B, X, 7]`: row, first, length, branch, first step, step after the last, reach (see `worklist`).
    cuts `[B, splits, 4]`: first step of a split, the one after its last, and the same of the runs that it meets.
    """

    rows: Any
    k: Any
    v: Any
    cached: tuple[CachedHeads, ...]
    layer: Any
    cos: Any
    sin: Any
    scalars: Any
    runs: Any
    cuts: Any


def unsupported(q: Array, caches: Sequence[CachedHeads]) -> str | None:
    """Say what of these arrays the kernels lack; None: nothing."""
    width = q.shape[-1]
    if width not in WIDTHS:
        return f"heads of width {width}; it takes {', '.join(map(str, WIDTHS))}"
    if q.dtype.name not in _QUERY_DTYPES:
        return f"queries in {q.dtype.name}; it takes {', '.join(_QUERY_DTYPES)}"
    for heads in caches:
        if heads.packed:
            return "keys and values in one packed array, which is for TPUs"
        if heads.k.dtype.name not in (*_QUERY_DTYPES, "int8"):
            return f"caches in {heads.k.dtype.name}; it takes {', '.join(_QUERY_DTYPES)} and int8"
        # Triton offsets are signed 32-bit numbers up to 4 GiB, and of one-byte numbers there are too many for that.
        if 2**31 < heads.k.size <= 2**32 and heads.k.dtype.itemsize == 1:
            return (
                f"an int8 cache of {heads.k.size / 2**30:.1f} GiB of keys: "
                "between 2 and 4 GiB, allocate fewer rows or slots, or a bfloat16 cache"
            )
    return None


def sources_of(inputs: Inputs) -> tuple[list[CachedHeads], list[Runs]]:
    """Return the cached sources, and the runs of every source, the new tokens first."""
    parts = () if inputs.context is None else inputs.context.parts
    heads = [part.heads for part in parts]
    return heads, [new_tokens(inputs), *(part.runs for part in parts)]


def lay_out(call: Call, inputs: Inputs, sources: tuple[list[CachedHeads], list[Runs]]) -> Operands:
    """Return the operands of a call."""
    caches, runs = sources
    q, k, v, context = inputs.q, inputs.k, inputs.v, inputs.context
    joined = joined_runs(runs, query_position(inputs), inputs.window)
    table, cuts = shares(*joined, call.tiles.slots, call.tiles.splits)
    cos, sin, scalars = (None, None, None) if context is None else (context.cos, context.sin, context.scalars)
    index = inputs.layer.reshape(1)
    return Operands(call.to_rows(q), k, v, tuple(caches), index, cos, sin, scalars, table, cuts)


def shares(runs: Runs, reach: Array, size: int, splits: int) -> tuple[Array, Array]:
    """Return `Operands.runs` and `Operands.cuts`: number the steps of every query row, and share them out."""
    count = (runs.length + size - 1) // size
    end = jnp.cumsum(count, axis=1, dtype=jnp.int32)
    columns = runs.row, runs.first, runs.length, runs.branch, end - count, end, reach
    table = jnp.stack(columns, axis=-1)
    total = end[:, -1:]
    edges = jnp.arange(splits + 1, dtype=jnp.int32)
    edges = edges * (total // splits) + jnp.minimum(edges, total % splits)  # steps * splits could overflow
    low, high = edges[:, :-1], edges[:, 1:]
    before = (end[:, None] <= low[..., None]).sum(axis=-1, dtype=jnp.int32)
    after = (end[:, None] < high[..., None]).sum(axis=-1, dtype=jnp.int32) + 1
    return table, jnp.stack([low, high, before, jnp.where(high > low, after, before)], axis=-1)


# ------------------------------------------------------------------------------------------------- inside of a kernel


@dataclasses.dataclass(frozen=True)
class Program:
    """Where a program stands: block of query rows, key/value head, row of the batch, and its references.

    layer: read once, since every block's address needs it.
    """

    call: Call
    refs: Operands
    layer: Any
    block: Any
    head: Any
    batch: Any
    split: Any

    @classmethod
    def at_grid(cls, call: Call, refs: Operands) -> Program:
        """Read the grid position."""
        return cls(call, refs, refs.layer[0], *(pl.program_id(axis) for axis in range(4)))

    @property
    def first_row(self) -> Any:
        """First of the program's query rows."""
        return self.block * self.call.tiles.rows

    def row_indices(self) -> Array:
        """Return the query rows of the block, `[rows]`, some of which may lie past the last one."""
        return self.first_row + jnp.arange(self.call.tiles.rows, dtype=jnp.int32)

    def load_rows(self, ref: Any, lanes: Any = None) -> Array:
        """Load the block of an array `[B, K, M, x]`, or `[B, K, M]` when `lanes` is None; 0 past the last row."""
        at = self.batch, self.head, pl.ds(self.first_row, self.call.tiles.rows)
        there = self.row_indices() < self.call.rows
        if lanes is None:
            return plgpu.load(ref.at[at], mask=there, other=0)
        return plgpu.load(ref.at[(*at, lanes)], mask=there[:, None], other=0)

    def store_rows(self, ref: Any, before: tuple[Any, ...], rows: Array, lanes: Any = None) -> None:
        """Store a block into an array `[*before, M, x]` or `[*before, M]`."""
        at = *before, pl.ds(self.first_row, self.call.tiles.rows)
        there = self.row_indices() < self.call.rows
        if lanes is None:
            plgpu.store(ref.at[at], rows, mask=there)
        else:
            plgpu.store(ref.at[(*at, lanes)], rows, mask=there[:, None])

    def walk(self, visit: Callable[[Segment, Any], Any], state: Any) -> Any:
        """Fold `visit(segment, state)` over the segments of this program's split, source by source."""
        low, high, before, after = (self.refs.cuts[self.batch, self.split, n] for n in range(4))
        column = 0
        for source, columns in enumerate(self.call.columns):

            def at(index: Any, state: Any, source: int = source) -> Any:
                return visit(Segment.read(self, source, index, low, high), state)

            first, last = jnp.maximum(before, column), jnp.minimum(after, column + columns)
            state = jax.lax.fori_loop(first, last, at, state)
            column += columns
        return state


@dataclasses.dataclass(frozen=True)
class Segment:
    """The part of a segment that a program reads: steps `begin .. end - 1`, counted from the segment's first slot.

    index: column of the work list.  row, first, length, branch: see `types.Runs`.  reach: see `worklist`.
    """

    program: Program
    source: int
    index: Any
    row: Any
    first: Any
    length: Any
    branch: Any
    reach: Any
    begin: Any
    end: Any

    @classmethod
    def read(cls, program: Program, source: int, index: Any, low: Any, high: Any) -> Segment:
        """Read a segment from the work list and cut it to steps `low .. high - 1`."""
        row, first, length, branch, begin, end, reach = (program.refs.runs[program.batch, index, n] for n in range(7))
        last = jnp.minimum(end, high) - begin
        if source == 0:  # no query of the block sees a new token past its own
            rows, group, size = program.call.tiles.rows, program.call.group, program.call.tiles.slots
            newest = jax.lax.div(program.first_row + rows - 1, group)
            last = jnp.minimum(last, jax.lax.div(newest, size) + 1)
        return cls(program, source, index, row, first, length, branch, reach, jnp.maximum(begin, low) - begin, last)

    @property
    def mapped(self) -> bool:
        """Whether the segment has a rotation and mapper scalars."""
        return self.program.call.mapped(self.source)

    @property
    def partly_seen(self) -> bool:
        """Whether some queries see less of it than others: new tokens, or through a window."""
        return self.source == 0 or self.program.call.windowed

    def scalar(self, which: int) -> Any:
        """Return one of aK, bK, aV, bV of a mapped segment."""
        refs = self.program.refs
        return refs.scalars[self.program.layer, self.program.batch, self.branch, which].astype(jnp.float32)

    def rotation(self) -> tuple[Array, Array]:
        """Return cos and sin `[1, H/2]` of a mapped segment."""
        at, refs = (self.program.batch, self.branch), self.program.refs
        return refs.cos[at][None], refs.sin[at][None]

    def fold(self, step: Callable[[Block, Any], Any], state: Any) -> Any:
        """Fold `step(block, state)` over the blocks: whole ones without a mask, then the one that the segment ends in."""

        def part(whole: bool) -> Callable[[Any, Any], Any]:
            return lambda index, state: step(Block(self, index * self.program.call.tiles.slots, whole), state)

        if self.partly_seen:
            return jax.lax.fori_loop(self.begin, self.end, part(False), state)
        full = jax.lax.div(self.length, self.program.call.tiles.slots)
        state = jax.lax.fori_loop(self.begin, jnp.minimum(self.end, full), part(True), state)
        return jax.lax.fori_loop(jnp.maximum(self.begin, full), self.end, part(False), state)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of slots of a segment, beginning `offset` slots after its first one.  whole: all of it is the segment's."""

    segment: Segment
    offset: Any
    whole: bool

    @property
    def slots(self) -> int:
        """Slots of the block."""
        return self.segment.program.call.tiles.slots

    def _inside(self) -> Array:
        return self.offset + jnp.arange(self.slots, dtype=jnp.int32) < self.segment.length

    def seen(self) -> Array:
        """Return which slots the query rows see, `[rows or 1, slots]`."""
        segment, seen = self.segment, self._inside()[None]
        if not segment.partly_seen:
            return seen
        group, rows = segment.program.call.group, segment.program.row_indices()[:, None]
        slot = (self.offset + jnp.arange(self.slots, dtype=jnp.int32))[None]
        if segment.source == 0:  # row (t, g) sees slot s when s <= t, that is when s * G <= t * G + g
            seen &= slot * group <= rows
        if segment.program.call.windowed:  # t < s + reach
            seen &= rows < (slot + segment.reach) * group
        return seen

    def _load(self, ref: Any, lanes: Any) -> Array:
        segment, program = self.segment, self.segment.program
        slots = pl.ds(segment.first + self.offset, self.slots)
        if segment.source == 0:
            at = ref.at[program.batch, slots, program.head, lanes]
        else:
            at = ref.at[program.layer, segment.row, program.head, slots, lanes]
        # What lies outside may be NaN, and 0 * NaN is NaN: it is never loaded.
        return plgpu.load(at) if self.whole else plgpu.load(at, mask=self._inside()[:, None], other=0)

    def _load_scales(self, ref: Any) -> Array:
        segment, program = self.segment, self.segment.program
        slots = pl.ds(segment.first + self.offset, self.slots)
        at = ref.at[program.layer, segment.row, program.head, pl.ds(0, 1), slots]
        return plgpu.load(at) if self.whole else plgpu.load(at, mask=self._inside()[None], other=0)

    def _heads(self) -> CachedHeads:
        refs, source = self.segment.program.refs, self.segment.source
        return CachedHeads(refs.k, refs.v) if source == 0 else refs.cached[source - 1]

    def keys(self, dtype: Any, lanes: Any) -> Array:
        """Load some lanes of the keys, `[slots, x]`."""
        return self._load(self._heads().k, lanes).astype(dtype)

    def values(self, dtype: Any, lanes: Any) -> Array:
        """Load some lanes of the values, `[slots, x]`."""
        return self._load(self._heads().v, lanes).astype(dtype)

    def scales(self) -> tuple[Array | None, Array | None]:
        """Load the scales of keys and values, `[1, slots]`; None unless the cache is int8."""
        heads = self._heads()
        if not heads.quantised:
            return None, None
        return self._load_scales(heads.k_scale), self._load_scales(heads.v_scale)


def product(a: Array, b: Array, *, trans_a: bool = False, trans_b: bool = False) -> Array:
    """Multiply matrices into float32; float32 ones exactly, not in tf32."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return plgpu.dot(a, b, trans_a=trans_a, trans_b=trans_b, precision=exact)


def halves(width: int) -> tuple[Any, Any]:
    """Return the lanes of both halves of a head vector, which a rotation mixes."""
    return pl.ds(0, width // 2), pl.ds(width // 2, width // 2)
