"""Logits to tokens, row by row: greedy, temperature, top-k, top-p.

Every row has its own options and its own random key, so its tokens do not depend on what else is in the batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from psynth_jax.axes import Array
from psynth_jax.sharding import replicated

MOST_ALTERNATIVES = 20
NOT_FINITE = -1  # in place of a token: it comes to the host with the tokens, and costs no transfer of its own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSampling:
    """Options of every row, arrays `[B]`; seed `[B, 3]` uint32: the caller's seed (low, high word), the row's number.

    min_p: tokens less likely than this share of the most likely one are out of reach, once the
    temperature is taken in.
    alternatives: how many of the most likely tokens a row asks for.
    """

    temperature: Array
    top_p: Array
    top_k: Array
    min_p: Array
    alternatives: Array
    seed: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampled:
    """A step's tokens, `[B]` each.

    token: int32; `NOT_FINITE` where a logit is NaN or infinite.  logprob: float32, the natural logarithm of the
    probability that the model gives the token at temperature 1, whatever was drawn at.  margin: float32, the difference
    of probability between the two most likely tokens.
    likely, likely_logprobs `[B, N]`: the most likely tokens, the best first, and their
    log-probabilities at temperature 1; zeros where no row asks for them.
    """

    token: Array
    logprob: Array
    margin: Array
    likely: Array
    likely_logprobs: Array


def sample(logits: Array, rows: RowSampling, drawn: Array, mesh: Mesh | None = None) -> Sampled:
    """Return one token per row from float32 `logits [B, V]`, which may be sharded over a mesh.

    drawn `[B]` or scalar int32 counts the tokens sampled before; with the row's seed it makes the random key.
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    finite = jnp.isfinite(logits).all(axis=-1)
    draws = rows.temperature > 0
    # To draw takes several times as long as an arg max over the vocabulary, so it is in a branch of its own.
    drawing = functools.partial(_drawn, logits, rows, jnp.broadcast_to(drawn, best.shape))
    token = jax.lax.cond(draws.any(), drawing, lambda: best)
    # A sort of the vocabulary, too, is for those that ask for it.
    count = min(MOST_ALTERNATIVES, logits.shape[-1])
    asked = (rows.alternatives > 0).any()
    most_likely = functools.partial(_most_likely, count, mesh)
    likely = jax.lax.cond(asked, most_likely, functools.partial(_nothing, count), logits)
    return _measured(logits, jnp.where(draws, token, best), best, finite, likely)


def _most_likely(count: int, mesh: Mesh | None, logits: Array) -> tuple[Array, Array]:
    """Return log-probabilities and tokens `[B, count]`, the best first."""
    values, tokens = jax.lax.top_k(logits, count)
    logprobs = values - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    if mesh is None:
        return logprobs, tokens
    # Gathered here, where a row has asked for it, and not behind every step.
    return jax.lax.with_sharding_constraint((logprobs, tokens), replicated(mesh))


def _nothing(count: int, logits: Array) -> tuple[Array, Array]:
    shape = logits.shape[0], count
    return jnp.zeros(shape, logits.dtype), jnp.zeros(shape, jnp.int32)


def _drawn(logits: Array, rows: RowSampling, drawn: Array) -> Array:
    """Return a token drawn for every row `[B]`, int32."""
    temperature = jnp.where(rows.temperature > 0, rows.temperature, 1.0)
    # At most 0, so that a low temperature cannot make several logits infinite.
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / temperature[:, None]
    cuts = (rows.temperature > 0) & ((rows.top_p < 1) | (rows.top_k > 0))
    # The cut takes as long as the rest of a draw: it is in a branch of its own, which runs where a row
    # asks for it.  Rows that ask for nothing come out of it as they went in.
    cut = functools.partial(_truncate, scaled, rows.top_p, rows.top_k)
    kept = jax.lax.cond(cuts.any(), cut, lambda: scaled)
    kept = jnp.where(scaled < jnp.log(rows.min_p)[:, None], -jnp.inf, kept)
    noise = jax.vmap(functools.partial(_noise, logits.shape[-1]))(rows.seed, drawn)
    # Fused into the arg max, the noise would be drawn by a loop that XLA neither vectorises nor splits over a CPU's cores.
    noisy = jax.lax.optimization_barrier(kept + noise)
    return jnp.argmax(noisy, axis=-1).astype(jnp.int32)


def _noise(vocabulary: int, seed: Array, drawn: Array) -> Array:
    """Return Gumbel noise `[V]` of a row's seed `[3]` after `drawn` tokens.

    The largest of logits plus noise is a draw from the softmax of the logits.
    """
    key = jax.random.key(seed[0])
    for number in (seed[1], seed[2], drawn):
        key = jax.random.fold_in(key, number)
    return jax.random.gumbel(key, (vocabulary,), jnp.float32)


def _measured(logits: Array, token: Array, best: Array, finite: Array, likely: tuple[Array, Array]) -> Sampled:
    """Say how likely the token is, and how far the best one is ahead of the second."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # Rounding must not make a probability of more than 1.
    logprob = jnp.minimum(jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - normaliser, 0)
    is_best = jnp.arange(logits.shape[-1]) == best[:, None]
    second = jnp.where(is_best, -jnp.inf, logits).max(axis=-1)
    margin = jnp.exp(logits.max(axis=-1) - normaliser) - jnp.exp(second - normaliser)
    logprobs, tokens = likely
    return Sampled(jnp.where(finite, token, NOT_FINITE), logprob, margin, tokens, logprobs)


def _truncate(logits: Array, top_p: Array, top_k: Array) -> Array:
    """Set logits `[B, V]` outside the top k, and outside the smallest set of probability top_p among those, to -inf.

    logits: at most 0, the largest of a row is 0.  Of logits that are equal, all are kept or none.
    """
    # Below 0, floats and their bits without the sign have opposite orders.  So the logit at which to cut is found bit by
    # bit, in 31 passes over the vocabulary: a sort of it takes five times as long on a CPU.
    depth = jax.lax.bitcast_convert_type(jnp.abs(logits), jnp.int32)
    deepest = depth.max(axis=-1)

    def enough_tokens(limit: Array) -> Array:
        return (depth <= limit[:, None]).sum(axis=-1) >= top_k

    limited = top_k > 0
    of_top_k = jax.lax.cond(limited.any(), lambda: _smallest(enough_tokens, deepest), lambda: deepest)
    of_top_k = jnp.where(limited, of_top_k, deepest)
    weights = jnp.where(depth <= of_top_k[:, None], jnp.exp(logits), 0)
    wanted = top_p * weights.sum(axis=-1)

    def enough_probability(limit: Array) -> Array:
        return jnp.where(depth <= limit[:, None], weights, 0).sum(axis=-1) >= wanted

    of_top_p = jnp.where(top_p < 1, _smallest(enough_probability, of_top_k), of_top_k)
    return jnp.where(depth <= of_top_p[:, None], logits, -jnp.inf)


def _smallest(holds: Callable[[Array], Array], largest: Array) -> Array:
    """Return, per row, the smallest int32 of 0 .. `largest [B]` from which on `holds` is true; `largest` if it never is."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        found = holds(middle)
        return jnp.where(found, low, middle + 1), jnp.where(found, middle, high)

    return jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(largest), largest))[1]
