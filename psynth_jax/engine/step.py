"""The one forward pass that everything runs, and its two programs: `step` samples, `score` measures given tokens.

    input [B, X] -> tokens [B, T] -> decoder over the runs of every row -> new keys and values into the pool
    sampled [N] ----^                  |-> last hidden -> logits -> sample               step
       by the step before              `-> all hidden  -> logits -> log-probabilities    score

What a step has sampled stays on the device, so that the next one can be launched before the host
has seen it.

Prefill chunks and decode steps are the same program at different T.  Workers and synthesizers share a batch: each row has
its own scale of LoRA and mapper.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array, Tokens
from psynth_jax.config import DecoderConfig
from psynth_jax.engine.sampling import RowSampling, Sampled, sample
from psynth_jax.engine.step_input import Layout, StepInput, unpacked
from psynth_jax.kv.pool import Places, write_tokens
from psynth_jax.mapper import Mapper
from psynth_jax.nn import over_mesh
from psynth_jax.nn.adapter import PlacedLora
from psynth_jax.nn.conditioning import fold, with_own_branch
from psynth_jax.nn.decoder import NEVER, Decoder
from psynth_jax.ops.branch_attention import Context, ContextPart, Implementation, Runs
from psynth_jax.ops.cached_heads import CachedHeads

LOGIT_ROWS = 64  # positions whose logits exist at once when scoring


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What makes a synthesizer of the base model.  mapper: None is the identity; lora: None is the base.

    The LoRA is as `Decoder.placed` returns it.
    """

    mapper: Mapper | None = None
    lora: PlacedLora | None = None

    @property
    def parts(self) -> list[str]:
        """What there is, by name."""
        named = (("LoRA", self.lora), ("mapper", self.mapper))
        return [name for name, part in named if part is not None]


def step(
    model: Decoder,
    conditioning: Conditioning,
    heads: CachedHeads,
    before: Array,
    array: Array,
    *,
    layout: Layout,
    row_axes: tuple[str, ...],
    implementation: Implementation,
) -> tuple[CachedHeads, Array, Sampled]:
    """Run new tokens; sample one behind the last of every row.

    Returns the pool with their keys and values; what `before` is to the next step; what was sampled.

    Args:
      conditioning: what rows with a scale above 0 are run with.
      heads: the pool `[L, R, K, S, H]`; it is donated.
      before: the tokens `[N]` that the step before this one sampled, row by row; N >= B.
      array: `[B, X]` int32; see `step_input`.
      layout: its columns.  row_axes: mesh axes that B is sharded over.  implementation: of attention.  All static.
    """
    rows = unpacked(array, layout)
    first = jnp.where(rows.before < 0, rows.tokens[:, 0], before[jnp.maximum(rows.before, 0)])
    rows = dataclasses.replace(rows, tokens=rows.tokens.at[:, 0].set(first))
    hidden, heads = _forward(model, conditioning, heads, rows, row_axes, implementation)
    last = jnp.maximum(rows.count - 1, 0)[:, None, None]
    logits = _logits(model, jnp.take_along_axis(hidden, last, axis=1)[:, 0], rows.vocabulary)
    sampling = RowSampling(rows.temperature, rows.top_p, rows.top_k, rows.min_p, rows.alternatives, rows.seed)
    sampled = sample(logits, sampling, rows.drawn, model.mesh)
    return heads, jax.lax.dynamic_update_slice(before, sampled.token, (0,)), sampled


def score(
    model: Decoder,
    conditioning: Conditioning,
    heads: CachedHeads,
    array: Array,
    targets: Tokens,
    *,
    layout: Layout,
    row_axes: tuple[str, ...],
    implementation: Implementation,
) -> tuple[CachedHeads, Array]:
    """Run new tokens; return the pool, and the log-probability `[B, T]` float32 of `targets [B, T]` after each of them.

    It is NaN where any logit is not finite.  Arguments as for `step`.
    """
    rows = unpacked(array, layout)
    hidden, heads = _forward(model, conditioning, heads, rows, row_axes, implementation)
    batch, tokens, width = hidden.shape
    size = min(LOGIT_ROWS, batch * tokens)
    blocks = -(-batch * tokens // size)
    pad = blocks * size - batch * tokens

    def in_blocks(x: Array) -> Array:
        padded = jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(blocks, size, *x.shape[1:])

    def block(item: tuple[Array, Array, Array]) -> Array:
        states, wanted, vocabulary = item
        logits = _logits(model, states, vocabulary)
        chosen = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
        logp = chosen - jax.nn.logsumexp(logits, axis=-1)
        return jnp.where(jnp.isfinite(logits).all(axis=-1), logp, jnp.nan)

    vocabulary = jnp.repeat(rows.vocabulary, tokens)
    flat = hidden.reshape(-1, width), targets.reshape(-1), vocabulary
    logp = jax.lax.map(block, jax.tree.map(in_blocks, flat))
    return heads, logp.reshape(-1)[: batch * tokens].reshape(batch, tokens)


def _forward(
    model: Decoder,
    conditioning: Conditioning,
    heads: CachedHeads,
    rows: StepInput,
    row_axes: tuple[str, ...],
    implementation: Implementation,
) -> tuple[Array, CachedHeads]:
    """Return the hidden states `[B, T, D]` and the pool with the tokens' keys and values."""
    hidden, k, v = model(
        rows.tokens,
        rows.position,
        _context(conditioning.mapper, heads, rows, model.config),
        conditioning.lora,
        rows.scale,
        row_axes=row_axes,
        implementation=implementation,
    )
    if not model.layers_are_stacked:
        # Else XLA may write to the pool before the last layer has read it, and copies it four times.
        hidden, k, v, heads = jax.lax.optimization_barrier((hidden, k, v, heads))
    places = Places(rows.block, rows.slots)
    if model.mesh is None:
        return hidden, write_tokens(heads, k, v, places)
    return hidden, over_mesh.write(model.mesh, heads, k, v, places, row_axes)


def _context(mapper: Mapper | None, heads: CachedHeads, rows: StepInput, config: DecoderConfig) -> Context:
    """Return what the rows read: runs of the pool, branches re-encoded and mapped, own tokens as they are."""
    folded = with_own_branch(fold(mapper, rows.shift, rows.span, rows.valid, config, rows.scale))
    row, first, length, branch, position = rows.runs
    runs = Runs(row, first, length, branch, position, rows.runs_used)
    return Context((ContextPart(heads, runs),), *folded, rows.position)


def _logits(model: Decoder, hidden: Array, vocabulary: Array) -> Array:
    """Return float32 logits `[B, V]` of `hidden [B, D]`, with those of tokens beyond `vocabulary [B]` out of reach."""
    logits = model.logits(hidden)
    return jnp.where(jnp.arange(logits.shape[-1]) < vocabulary[:, None], logits, NEVER)
