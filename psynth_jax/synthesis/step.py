"""The one step that everything runs: some tokens of every row in, the next token of every row out.

    tokens [B, T] -> fold shifts and mapper -> decoder over own cache and branches -> last hidden -> logits -> sample

Prefill chunks and decode steps are the same function at different T.  `ADVANCE`, `SCORE`,
`ALLOCATE` and `GROW` say how the functions here are compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array, PerRow, Tokens
from psynth_jax.branches import BranchView
from psynth_jax.cache import KVCache, cache_shardings, placement_on
from psynth_jax.config import DecoderConfig
from psynth_jax.engine.programs import Program
from psynth_jax.mapper import IDENTITY, Mapper, mapper_scalars
from psynth_jax.nn.adapter import Lora
from psynth_jax.nn.decoder import Decoder
from psynth_jax.nn.layers import branch_angles
from psynth_jax.nn.local import by_kind
from psynth_jax.nn.ragged import RaggedRows
from psynth_jax.ops.branch_attention import Context, Implementation
from psynth_jax.sharding import replicated
from psynth_jax.synthesis.sampling import RowSampling, Sampled, sample

LOGIT_ROWS = 64  # positions whose logits exist at once when scoring


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reader:
    """What turns the base model into a synthesizer, and what it reads.  All None: the base model reading nothing.

    mapper: None is the identity.  lora: None is the base.  strength `[B]`: how much of both each row gets, 0
    for a worker in the same batch; None is 1.  view: branches.
    """

    mapper: Mapper | None = None
    lora: Lora | None = None
    strength: PerRow | None = None
    view: BranchView | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What a step feeds: tokens `[B, T]`, `count [B]` of them real; start `[B]` filled slots; offset `[B]` of slot 0.

    ragged: the tokens are lists `[X, Z]` of these rows instead, and start is 0 everywhere.
    """

    tokens: Tokens
    start: PerRow
    count: PerRow
    offset: PerRow
    ragged: RaggedRows | None = None


def fold(reader: Reader, config: DecoderConfig) -> Context | None:
    """Turn branches and mapper into what attention takes: one rotation per branch, four scalars per layer and branch."""
    view = reader.view
    if view is None:
        return None
    cos, sin = by_kind(config, lambda rope: branch_angles(rope, config.head_width, view.shift))
    scalars = mapper_scalars(reader.mapper, view.span, view.valid, config.layers)
    if reader.strength is not None:
        identity = jnp.array(IDENTITY, jnp.float32)
        scalars = identity + reader.strength[:, None, None] * (scalars - identity)
    return Context(view.parts, cos, sin, scalars)


def _run(
    model: Decoder, reader: Reader, rows: Rows, cache: KVCache, fresh: bool, implementation: Implementation
) -> tuple[Array, KVCache]:
    return model(
        rows.tokens,
        cache,
        rows.start,
        rows.count,
        rows.offset,
        fold(reader, model.config),
        reader.lora,
        reader.strength,
        fresh=fresh,
        rows=rows.ragged,
        implementation=implementation,
    )


def advance(
    model: Decoder,
    reader: Reader,
    rows: Rows,
    cache: KVCache,
    hidden: Array,
    sampling: RowSampling | None,
    index: Array,
    *,
    fresh: bool,
    greedy: bool,
    implementation: Implementation,
) -> tuple[KVCache, Array, Sampled | None]:
    """Feed tokens; return the cache, every row's hidden state at its last real token `[B, D]`, and sampled tokens.

    Args:
      hidden: `[B, D]` of the call before; kept for rows that have no real token in this one.
      sampling: None samples nothing (a chunk that is not the last one).
      index: scalar int32, tokens sampled before.
      fresh, greedy, implementation: static; see `Decoder` and `sample`.
    """
    states, cache = _run(model, reader, rows, cache, fresh, implementation)
    if rows.ragged is None:
        last = jnp.take_along_axis(states, jnp.maximum(rows.count - 1, 0)[:, None, None], axis=1)[:, 0]
    else:
        last = rows.ragged.last(states)
    hidden = jnp.where((rows.count > 0)[:, None], last, hidden)
    if sampling is None:
        return cache, hidden, None
    return cache, hidden, sample(model.logits(hidden), sampling, index, greedy=greedy)


def score(
    model: Decoder,
    reader: Reader,
    rows: Rows,
    cache: KVCache,
    targets: Tokens,
    *,
    fresh: bool,
    implementation: Implementation,
) -> tuple[KVCache, Array]:
    """Feed tokens; return the cache and the log-probability `[B, T]` float32 of `targets [B, T]` after each of them.

    It is NaN where any logit is not finite.
    """
    states, cache = _run(model, reader, rows, cache, fresh, implementation)
    flat, wanted = states.reshape(-1, states.shape[-1]), targets.reshape(-1)
    size = min(LOGIT_ROWS, flat.shape[0])
    blocks = -(-flat.shape[0] // size)
    pad = blocks * size - flat.shape[0]
    flat, wanted = jnp.pad(flat, ((0, pad), (0, 0))), jnp.pad(wanted, (0, pad))

    def block(item: tuple[Array, Array]) -> Array:
        logits = model.logits(item[0])
        chosen = jnp.take_along_axis(logits, item[1][:, None], axis=-1)[:, 0]
        logp = chosen - jax.nn.logsumexp(logits, axis=-1)
        return jnp.where(jnp.isfinite(logits).all(axis=-1), logp, jnp.nan)

    logp = jax.lax.map(block, (flat.reshape(blocks, size, -1), wanted.reshape(blocks, size)))
    return cache, logp.reshape(-1)[: targets.size].reshape(targets.shape)


def allocate(
    model: Decoder,
    *,
    rows: int,
    slots: int,
    dtype: str | None,
    row_axes: tuple[str, ...],
) -> KVCache:
    """Return an empty own cache; on a mesh its rows are sharded over `row_axes`."""
    return model.allocate_cache(rows, slots, dtype, row_axes)


def grow(model: Decoder, cache: KVCache, *, slots: int) -> KVCache:
    """Return a copy of a cache with room for `slots`."""
    return cache.grow(slots)


def _cache_and_whole(results: int) -> Callable[..., Any]:
    """Return `out_shardings`: the cache where the old one lies, `results` whole on each device."""

    def out_shardings(
        model: Decoder,
        reader: Reader,
        rows: Rows,
        cache: KVCache,
        *rest: Any,
        **static: Any,
    ) -> Any:
        assert model.mesh is not None
        whole = [replicated(model.mesh)] * results
        return cache_shardings(model.mesh, cache.placement), *whole

    return out_shardings


def _allocated(model: Decoder, *, row_axes: tuple[str, ...], **static: Any) -> Any:
    assert model.mesh is not None
    placement = placement_on(model.mesh, model.config.kv_heads, row_axes)
    return cache_shardings(model.mesh, placement)


def _grown(model: Decoder, cache: KVCache, **static: Any) -> Any:
    assert model.mesh is not None
    return cache_shardings(model.mesh, cache.placement)


_LESS = "fewer or shorter branches, fewer rows at once, a lower max_new_tokens, or dtype bfloat16"
ADVANCE = Program(
    advance,
    static=("fresh", "greedy", "implementation"),
    donated=("cache",),
    out_shardings=_cache_and_whole(2),
    less_memory=_LESS,
)
SCORE = Program(
    score,
    static=("fresh", "implementation"),
    donated=("cache",),
    out_shardings=_cache_and_whole(1),
    less_memory=_LESS,
)
ALLOCATE = Program(
    allocate,
    static=("rows", "slots", "dtype", "row_axes"),
    out_shardings=_allocated,
    less_memory=_LESS,
)
# The cache is not donated: its memory is too small for the larger one.
GROW = Program(grow, static=("slots",), out_shardings=_grown, less_memory=_LESS)
