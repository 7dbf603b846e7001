"""What the TPU kernels, forward and backward, have in common: how a call is laid out, and what a step looks at.

    grid  (B, K / heads, T / tokens, steps)          a step reads one block of slots of one run

The work list says which block that is; its index maps are the only thing that knows, so blocks outside of a span are never
fetched and rows need not be neighbours.  Steps of other sources repeat a source's block, which costs no copy.

Rows of a query block are (token, head of the group), token first, so grouped heads share every key.  In the packed layout
rows have H lanes for a key and H for a value: a query has zeros in the second half, and an output is read from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from psynth_jax.axes import Array
from psynth_jax.ops.branch_attention.differentiable import Inputs
from psynth_jax.ops.branch_attention.tpu_tiles import Tiles, tiles
from psynth_jax.ops.branch_attention.types import Context, Runs
from psynth_jax.ops.branch_attention.worklist import WorkList, new_tokens, query_position, work_list
from psynth_jax.ops.cached_heads import CachedHeads, packs

MASKED = -1e30  # a logit that counts for nothing; -inf would make NaN of -inf - -inf
VMEM_BYTES = 48 << 20
LIST = len(dataclasses.fields(WorkList))
NEW_SLOTS = 16  # new tokens are padded to a multiple: whole tiles


@dataclasses.dataclass(frozen=True)
class Source:
    """Something that is read: heads of all layers, which layer, the runs of every query row."""

    heads: CachedHeads
    layer: Array
    runs: Runs


@dataclasses.dataclass(frozen=True)
class Call:
    """What is known of a call when it is traced.

    scale: of the logits.  group, tokens, width: G, T and H.  cut: the tiles.
    sizes: slots of a block of each source; source 0 is the new tokens.
    windowed: whether queries see a window only.
    """

    scale: float
    group: int
    tokens: int
    width: int
    cut: Tiles
    sizes: tuple[int, ...]
    packed: bool
    quantised: tuple[bool, ...]
    windowed: bool

    @property
    def rows(self) -> int:
        """Rows of a query block."""
        return self.cut.tokens * self.group

    @property
    def lanes(self) -> int:
        """Lanes of a row."""
        return 2 * self.width if self.packed else self.width

    def query_rows(self, q: Array) -> Array:
        """Lay `[B, T, N, H]` out as rows `[B, K, M, lanes]`, where a key's lanes are."""
        return self.to_rows(q, 0, self.lanes - self.width)

    def value_rows(self, heads: Array) -> Array:
        """Lay `[B, T, N, H]` out as rows `[B, K, M, lanes]`, where a value's lanes are."""
        return self.to_rows(heads, self.lanes - self.width, 0)

    def to_rows(self, heads: Array, before: int = 0, after: int = 0) -> Array:
        """Lay `[B, T, N, x]` out as rows `[B, K, M, before + x + after]`, filled up with zeros."""
        batch, tokens, count, width = heads.shape
        kv_heads, pad = count // self.group, -tokens % self.cut.tokens
        grouped = heads.reshape(batch, tokens, kv_heads, self.group, width).transpose(0, 2, 1, 3, 4)
        padded = jnp.pad(grouped, ((0, 0), (0, 0), (0, pad), (0, 0), (before, after)))
        return padded.reshape(batch, kv_heads, (tokens + pad) * self.group, before + width + after)

    def from_rows(self, rows: Array) -> Array:
        """Return rows `[B, K, M, x]` as `[B, T, N, x]`."""
        batch, kv_heads, _, tail = rows.shape
        spread = rows.reshape(batch, kv_heads, -1, self.group, tail)[:, :, : self.tokens]
        return spread.transpose(0, 2, 1, 3, 4).reshape(batch, self.tokens, kv_heads * self.group, tail)

    def query_spec(self, lanes: int) -> Any:
        """Return the block spec of something with one value (or lanes) per query row."""
        return pl.BlockSpec((1, self.cut.kv_heads, self.rows, lanes), lambda b, h, t, step, *_: (b, h, t, 0))

    def scratch(self, lanes: int, dtype: Any = jnp.float32) -> Any:
        """Return scratch memory for a block of query rows."""
        return pltpu.VMEM((self.cut.kv_heads, self.rows, lanes), dtype)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A call laid out: the static part, the work list, and the operands that every kernel takes, with their block specs.

    layers: of every source.  operands: query rows, the same with halves swapped, rotation, scalars, then the sources.
    """

    call: Call
    layers: Array
    work: WorkList
    operands: tuple[Array, ...]
    specs: tuple[Any, ...]

    @property
    def rows(self) -> Array:
        """Query rows `[B, K, M, lanes]`."""
        return self.operands[0]

    @property
    def new_slots(self) -> int:
        """Slots of the new tokens, padding included."""
        return self.operands[4].shape[3]

    def pallas_call(
        self,
        kernel: Any,
        extra: Sequence[tuple[Any, Array]],
        outputs: Sequence[tuple[Any, Any]],
        scratch: Sequence[Any],
        *,
        parallel_tokens: bool,
        interpret: bool,
        name: str,
    ) -> list[Array]:
        """Run a kernel on the whole grid.  extra: (spec, operand) before the sources; outputs: (spec, shape)."""
        steps = jnp.maximum(self.work.total.max(), 1)
        batch, kv_heads, rows, _ = self.rows.shape
        tokens = pltpu.PARALLEL if parallel_tokens else pltpu.ARBITRARY
        semantics = (pltpu.PARALLEL, pltpu.PARALLEL, tokens, pltpu.ARBITRARY)
        run = pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1 + LIST,
                grid=(batch, kv_heads // self.call.cut.kv_heads, rows // self.call.rows, steps),
                in_specs=[*self.specs[:4], *(spec for spec, _ in extra), *self.specs[4:]],
                out_specs=[spec for spec, _ in outputs],
                scratch_shapes=list(scratch),
            ),
            out_shape=[shape for _, shape in outputs],
            compiler_params=pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=VMEM_BYTES),
            interpret=interpret,
            name=name,
        )
        scalars = self.layers, *jax.tree.leaves(self.work)
        return run(*scalars, *self.operands[:4], *(array for _, array in extra), *self.operands[4:])


def lay_out(inputs: Inputs, scale: float) -> Layout:
    """Lay out a call, of either pass."""
    _, tokens, heads, width = inputs.q.shape
    kv_heads = inputs.k.shape[2]
    sources = _sources(inputs)
    most = max(sources, key=lambda source: source.heads.slots).heads
    cut = tiles(
        tokens, heads // kv_heads, kv_heads, most.k.shape[-1], most.k.dtype.itemsize, max(len(sources) - 1, 1), most.slots
    )
    sizes = tuple(min(cut.slots, source.heads.slots) for source in sources)
    packed, quantised = sources[0].heads.packed, tuple(source.heads.quantised for source in sources)
    windowed = inputs.window is not None
    call = Call(scale, heads // kv_heads, tokens, width, cut, sizes, packed, quantised, windowed)
    slots = [source.heads.slots for source in sources]
    work = work_list(
        [source.runs for source in sources],
        slots,
        sizes,
        query_position(inputs),
        inputs.window,
    )
    rows = call.query_rows(inputs.q)
    rotation, scalars = _of_branches(inputs.context, inputs.layer, call, rows.shape[0])
    query = call.query_spec(call.lanes)
    specs = [query, query, pl.BlockSpec((1, 1, 2, call.lanes), _branch_map), pl.BlockSpec(memory_space=pltpu.SMEM)]
    operands = [rows, swap_halves(rows, width), rotation, scalars]
    for number, source in enumerate(sources):
        more_specs, arrays = _source_operands(source, number, cut.kv_heads, sizes[number])
        specs, operands = specs + more_specs, operands + arrays
    return Layout(call, jnp.stack([source.layer for source in sources]), work, tuple(operands), tuple(specs))


def _sources(inputs: Inputs) -> list[Source]:
    """List what is read: the new tokens as a cache of one layer, the parts of the context."""
    context = inputs.context
    _, tokens, _, width = inputs.k.shape
    parts = () if context is None else context.parts
    others = [part.heads for part in parts]
    pad = ((0, 0), (0, 0), (0, -tokens % NEW_SLOTS), (0, 0))
    new_k, new_v = (jnp.pad(new.transpose(0, 2, 1, 3), pad)[None] for new in (inputs.k, inputs.v))
    packed = any(heads.packed for heads in others) or (not others and packs(width))
    new = CachedHeads(jnp.concatenate([new_k, new_v], axis=-1), None) if packed else CachedHeads(new_k, new_v)
    identity = 0 if context is None else context.cos.shape[1]  # the branch that changes nothing: see `_of_branches`
    sources = [Source(new, jnp.int32(0), new_tokens(inputs, identity))]
    return sources + [Source(part.heads, inputs.layer, part.runs) for part in parts]


def _of_branches(context: Context | None, layer: Array | int, call: Call, batch: int) -> tuple[Array, Array]:
    """Return rotations `[B, W + 1, 2, lanes]` and scalars `[B, 4 (W + 1)]`; the last branch is the identity.

    With y the query x with its halves swapped, `R x = x * rotation[0] + y * rotation[1]`: no lane moves in the kernel.
    """
    half = call.width // 2
    cos, sin = jnp.ones((batch, 1, half)), jnp.zeros((batch, 1, half))
    scalars = jnp.broadcast_to(jnp.array([1.0, 0.0, 1.0, 0.0]), (batch, 1, 4))
    if context is not None:
        cos, sin = jnp.concatenate([context.cos, cos], axis=1), jnp.concatenate([context.sin, sin], axis=1)
        scalars = jnp.concatenate([context.scalars[layer], scalars], axis=1)
    rotation = jnp.stack([jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)], axis=2)
    rotation = jnp.pad(rotation, ((0, 0), (0, 0), (0, 0), (0, call.lanes - call.width)))
    return rotation.astype(jnp.float32), scalars.reshape(batch, -1).astype(jnp.float32)


def swap_halves(rows: Array, width: int) -> Array:
    """Swap the two halves of the first `width` lanes."""
    half = width // 2
    return jnp.concatenate([rows[..., half:width], rows[..., :half], rows[..., width:]], axis=-1)


def _branch_map(b: Any, h: Any, t: Any, step: Any, layers: Any, *refs: Any) -> tuple[Any, ...]:
    work = WorkList(*refs)
    return b, work.branch[b, work.run[b, step]], 0, 0


def _source_operands(source: Source, number: int, heads: int, size: int) -> tuple[list[Any], list[Array]]:
    """Return block specs and arrays of a source: k, v (unless packed), and their scales (if int8)."""

    def place(b: Any, step: Any, layers: Any, work: WorkList) -> tuple[Any, Any, Any]:
        begin, end = work.source_begin[number, b], work.source_end[number, b]
        mine = jnp.clip(step, begin, jnp.maximum(end - 1, 0))  # other sources' steps: the block that is there already
        run = work.run[b, mine]
        row = jnp.where(end > begin, work.row[b, run], 0)
        block = jnp.where(end > begin, work.block[b, run] + mine - work.begin[b, run], 0)
        return layers[number], row, block

    def heads_map(b: Any, h: Any, t: Any, step: Any, layers: Any, *refs: Any) -> tuple[Any, ...]:
        layer, row, block = place(b, step, layers, WorkList(*refs))
        return layer, row, h, block, 0

    def scale_map(b: Any, h: Any, t: Any, step: Any, layers: Any, *refs: Any) -> tuple[Any, ...]:
        layer, row, block = place(b, step, layers, WorkList(*refs))
        return layer, row, h, 0, block

    stored = source.heads
    arrays = [x for x in (stored.k, stored.v) if x is not None]
    specs = [pl.BlockSpec((1, 1, heads, size, x.shape[-1]), heads_map) for x in arrays]
    if stored.quantised:
        arrays += [stored.k_scale, stored.v_scale]
        specs += [pl.BlockSpec((1, 1, heads, 1, size), scale_map)] * 2
    return specs, arrays


# ------------------------------------------------------------------------------------------------- inside of a kernel


@dataclasses.dataclass(frozen=True)
class Step:
    """Where a step stands, and the operands that every kernel has.

    row, tokens, index: query row, block of its tokens, step.  run, branch: what it reads.
    """

    call: Call
    work: WorkList
    row: Any
    tokens: Any
    index: Any
    run: Any
    branch: Any
    query: Any
    swapped: Any
    rotation: Any
    scalars: Any

    @classmethod
    def at_grid(cls, call: Call, refs: Sequence[Any]) -> tuple[Step, Sequence[Any]]:
        """Read the work list at the current grid position; return the step and the refs that are not its own."""
        work = WorkList(*refs[:LIST])
        row, tokens, index = pl.program_id(0), pl.program_id(2), pl.program_id(3)
        run = work.run[row, index]
        branch = work.branch[row, run]
        return cls(call, work, row, tokens, index, run, branch, *refs[LIST : LIST + 4]), refs[LIST + 4 :]

    def scalar(self, which: int) -> Any:
        """Return one of aK, bK, aV, bV."""
        return self.scalars[self.row, 4 * self.branch + which]

    def first_of_run(self) -> Any:
        """Whether this step is the first one of its run."""
        return self.index == self.work.begin[self.row, self.run]

    def last_of_run(self) -> Any:
        """Whether this step is the last one of its run."""
        return self.index == self.work.end[self.row, self.run] - 1

    def reads(self, source: int) -> Any:
        """Whether this step reads a block of this source."""
        return (self.index >= self.work.source_begin[source, self.row]) & (
            self.index < self.work.source_end[source, self.row]
        )

    def turned_query(self) -> Array:
        """Return the query block turned by the branch's shift, float32."""
        upright, sideways = self.rotation[0, 0, 0:1], self.rotation[0, 0, 1:2]
        return self.query[0].astype(jnp.float32) * upright + self.swapped[0].astype(jnp.float32) * sideways

    def query_sums(self) -> Array:
        """Return the sum over H of every query row."""
        return self.query[0].astype(jnp.float32).sum(axis=-1, keepdims=True)

    def visible(self, source: int) -> tuple[Array, Array]:
        """Return which slots query rows see, `[1, rows, slots]`, and which slots are the run's, `[1, slots, 1]`."""
        size, rows = self.call.sizes[source], self.call.rows
        at = self.row, self.run
        base = (self.work.block[at] + self.index - self.work.begin[at]) * size
        first, stop = self.work.first[at], self.work.stop[at]

        def inside(slot: Array) -> Array:
            return (slot >= first) & (slot < stop)

        slot = base + jax.lax.broadcasted_iota(jnp.int32, (1, rows, size), 2)
        seen = inside(slot)
        row = self.tokens * rows + jax.lax.broadcasted_iota(jnp.int32, (1, rows, size), 1)
        if source == 0:  # new tokens: slot s is seen by row r = (t, g) when s <= t, that is when s * G <= r
            seen &= slot * self.call.group <= row
        if self.call.windowed:  # t < s + reach
            seen &= row < (slot + self.work.reach[at]) * self.call.group
        return seen, inside(base + jax.lax.broadcasted_iota(jnp.int32, (1, size, 1), 1))

    def logits(self, turned: Array, k: Any, k_scale: Any, query_sums: Array) -> Array:
        """Return logits `[heads, rows, slots]`: `turned` holds the scaled query in the compute dtype."""
        raw = product(turned, k[0, 0].astype(turned.dtype), (2, 2))
        if k_scale is not None:
            raw = raw * k_scale[0, 0]
        return raw + (self.call.scale * self.scalar(1)) * query_sums


def source_refs(call: Call, refs: Sequence[Any]) -> tuple[list[tuple[Any, ...]], Sequence[Any]]:
    """Split refs into (k, v, k_scale, v_scale) of each source, None for what it lacks, and the rest."""
    sources, at = [], 0
    for quantised in call.quantised:
        halves = 1 if call.packed else 2
        k, v = refs[at], refs[at + halves - 1]
        at += halves
        scales = (refs[at], refs[at + 1]) if quantised else (None, None)
        at += 2 * quantised
        sources.append((k, v, *scales))
    return sources, refs[at:]


def product(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Multiply `[heads, ., .]` matrices head by head over one axis of each, into float32."""
    exact = jax.lax.Precision.HIGHEST if b.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, dimensions, precision=exact, preferred_element_type=jnp.float32)
