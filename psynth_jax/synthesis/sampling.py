"""Logits to tokens, row by row: greedy, temperature, top-k, top-p.

Every row has its own options and its own random key, so its tokens do not depend on what else is in the batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import Array, HostArray
from psynth_jax.errors import InputError, shown
from psynth_jax.unicode_text import checked_text

Stop: TypeAlias = str | int | Sequence[str | int] | None

# Below this a temperature or a top_p leaves the most likely token alone.  In float32, and on devices that flush denormals
# to zero, nothing smaller could be computed with.
LEAST = 1e-6
NOT_FINITE = -1  # in place of a token: it comes to the host with the tokens, and costs no transfer of its own
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How to decode.

    temperature 0 is greedy, as is any temperature or top_p below 1e-6.  top_k 0 and top_p 1 are off; both may be on, top_k
    cuts first.  stop: texts or token ids that end a row, besides the model's own end tokens; one, several or None.  They are
    not part of the output.  NumPy scalars are taken as the numbers that they are.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: Stop = ()

    def __post_init__(self) -> None:
        """Raise `InputError` naming the option that is out of range."""
        # NumPy's small numbers overflow in sums with lengths, and in comparisons with large ones.
        for name in ("max_new_tokens", "temperature", "top_p", "top_k"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        ranges = (
            ("max_new_tokens", _is_whole(self.max_new_tokens) and self.max_new_tokens >= 1, "a whole number of at least 1"),
            ("temperature", _is_number(self.temperature) and 0 <= self.temperature <= _LARGEST, "0 (greedy) or more"),
            ("top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", _is_whole(self.top_k) and self.top_k >= 0, "a whole number, 0 (off) or more"),
            ("stop", all(_is_stop(stop) for stop in self.stops), "texts that are not empty, or token ids"),
        )
        for name, fine, right in ranges:
            if not fine:
                raise InputError(f"{name} is {shown(getattr(self, name))}; it must be {right}")
        for stop in self.stops:
            if isinstance(stop, str):
                checked_text(stop, "a stop text")
        object.__setattr__(self, "temperature", float(self.temperature))
        object.__setattr__(self, "top_p", float(self.top_p))

    @property
    def stops(self) -> tuple[str | int, ...]:
        """`stop` as a tuple."""
        if self.stop is None:
            return ()
        several = isinstance(self.stop, Sequence) and not isinstance(self.stop, str | bytes | bytearray)
        return tuple(self.stop) if several else (self.stop,)  # type: ignore[arg-type,return-value]

    @property
    def greedy(self) -> bool:
        """Whether no random number is drawn."""
        return self.temperature < LEAST or self.top_p < LEAST


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as the Python number that it is, and anything else as it is."""
    if isinstance(value, np.integer):
        return int(value)
    return float(value) if isinstance(value, np.floating) else value


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_stop(value: object) -> bool:
    if isinstance(value, str):
        return value != ""
    return _is_whole(value) and int(value) >= 0  # type: ignore[call-overload]


def checked_seed(seed: object) -> int:
    """Return a seed as an int.  Raises `InputError` when it is not a whole number."""
    if not _is_whole(seed):
        raise InputError(f"seed must be a whole number; {shown(seed)} is none")
    return int(seed)  # type: ignore[call-overload]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSampling:
    """Options of every row, arrays `[B]`; seed `[B, 3]` uint32: the caller's seed (low, high word), the row's number."""

    temperature: Array
    top_p: Array
    top_k: Array
    seed: Array


def row_sampling(options: SamplingOptions, seeds: Sequence[tuple[int, int]]) -> RowSampling:
    """Lay the options out per row.  seeds: (seed, number of the row within its question) of each row."""
    rows = len(seeds)
    fill = lambda value, dtype: np.full(rows, value, dtype)  # noqa: E731
    word = 0xFFFFFFFF
    seed: HostArray = np.array([[seed & word, seed >> 32 & word, index] for seed, index in seeds], np.uint32)
    top_k = min(options.top_k, np.iinfo(np.int32).max)
    temperature = 0.0 if options.greedy else options.temperature
    return RowSampling(fill(temperature, np.float32), fill(options.top_p, np.float32), fill(top_k, np.int32), seed)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampled:
    """A step's tokens, `[B]` each.

    token: int32; `NOT_FINITE` where a logit is NaN or infinite.  logprob: float32, the natural logarithm of the
    probability that the model gives the token at temperature 1, whatever was drawn at.  margin: float32, the difference
    of probability between the two most likely tokens.
    """

    token: Array
    logprob: Array
    margin: Array


def sample(logits: Array, rows: RowSampling, step: Array, *, greedy: bool) -> Sampled:
    """Return one token per row from float32 `logits [B, V]`.

    step (scalar int32) counts the tokens sampled so far; with the row's seed it makes the random key.  greedy (static) is
    the promise that every row's temperature is 0.
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    finite = jnp.isfinite(logits).all(axis=-1)
    if greedy:
        return _measured(logits, best, best, finite)

    temperature = jnp.where(rows.temperature > 0, rows.temperature, 1.0)
    # At most 0, so that a low temperature cannot make several logits infinite.
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / temperature[:, None]
    cuts = (rows.temperature > 0) & ((rows.top_p < 1) | (rows.top_k > 0))
    # The cut takes as long as the rest of a draw: it is in a branch of its own, which runs where a row
    # asks for it.  Rows that ask for nothing come out of it as they went in.
    cut = functools.partial(_truncate, scaled, rows.top_p, rows.top_k)
    kept = jax.lax.cond(cuts.any(), cut, lambda: scaled)
    noise = jax.vmap(functools.partial(_noise, step, logits.shape[-1]))(rows.seed)
    drawn = jnp.argmax(kept + noise, axis=-1).astype(jnp.int32)
    return _measured(logits, jnp.where(rows.temperature > 0, drawn, best), best, finite)


def _noise(step: Array, vocabulary: int, seed: Array) -> Array:
    """Return Gumbel noise `[V]` of a row's seed `[3]` at a step.

    The largest of logits plus noise is a draw from the softmax of the logits.
    """
    key = jax.random.key(seed[0])
    for number in (seed[1], seed[2], step):
        key = jax.random.fold_in(key, number)
    return jax.random.gumbel(key, (vocabulary,), jnp.float32)


def _measured(logits: Array, token: Array, best: Array, finite: Array) -> Sampled:
    """Say how likely the token is, and how far the best one is ahead of the second."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # Rounding must not make a probability of more than 1.
    logprob = jnp.minimum(jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - normaliser, 0)
    is_best = jnp.arange(logits.shape[-1]) == best[:, None]
    second = jnp.where(is_best, -jnp.inf, logits).max(axis=-1)
    margin = jnp.exp(logits.max(axis=-1) - normaliser) - jnp.exp(second - normaliser)
    return Sampled(jnp.where(finite, token, NOT_FINITE), logprob, margin)


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
