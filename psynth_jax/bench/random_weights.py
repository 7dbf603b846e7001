"""Random weights and caches of a model's shape, drawn on the device.

They are drawn layer by layer in the dtype in which they are kept: a model of 14 billion parameters
needs little more memory than its own 28 GB while it is drawn.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import Array
from psynth_jax.branch import Branch, Segment
from psynth_jax.branches import Branches
from psynth_jax.cache import KVCache, packed_here, slot_bucket
from psynth_jax.config import DecoderConfig
from psynth_jax.model import Model
from psynth_jax.nn.decoder import Decoder, parameter_letters, parameter_shapes
from psynth_jax.ops.cached_heads import CachedHeads

WIDTH = 0.02  # standard deviation of the weights
PREFIX = 8  # slots before a drawn branch, as a worker's prompt would leave


def random_decoder(config: DecoderConfig, dtype: jax.typing.DTypeLike, seed: int = 0) -> Decoder:
    """Return a decoder with random weights on the default device."""
    letters, shapes = parameter_letters(config), parameter_shapes(config)
    keys = jax.random.split(jax.random.key(seed), len(letters))
    parameters = {}
    for key, (name, axes) in zip(keys, letters.items(), strict=True):
        starts_at_one = name.endswith("norm") and not config.norms_from_one
        drawn = _stacked if axes.startswith("L") else _drawn
        mean = 1.0 if starts_at_one else 0.0
        parameters[name] = drawn(key, shapes[name], jnp.dtype(dtype), WIDTH, mean)
    return Decoder(config, parameters)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _drawn(
    key: Array,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    width: float,
    mean: float,
) -> Array:
    noise = jax.random.normal(key, shape, jnp.float32)
    return (mean + width * noise).astype(dtype)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _stacked(
    key: Array,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    width: float,
    mean: float,
) -> Array:
    """Draw one layer after another: only one of them exists in float32 at a time."""
    keys = jax.random.split(key, shape[0])
    return jax.lax.map(lambda each: _drawn(each, shape[1:], dtype, width, mean), keys)


def random_cache(
    config: DecoderConfig,
    dtype: jax.typing.DTypeLike,
    rows: int,
    filled: int,
    seed: int = 0,
) -> KVCache:
    """Return a cache of random keys and values whose rows have `filled` slots filled."""
    shape = (config.layers, rows, config.kv_heads, slot_bucket(filled), config.head_width)
    one_slot, packed = (1, 1, config.kv_heads, 1, config.head_width), packed_here(config.head_width)

    @jax.jit
    def fill() -> CachedHeads:
        both = jax.random.split(jax.random.key(seed))
        k, v = (_stacked(key, shape, jnp.dtype(dtype), 1.0, 0.0) for key in both)
        return CachedHeads.allocate(one_slot, dtype, packed=packed).stored(k, v)

    return KVCache(fill(), jnp.full(rows, filled, jnp.int32))


def random_branches(model: Model, branches: int, tokens: int, seed: int = 0) -> Branches:
    """Return branches of a random cache, a row each: times do not depend on the numbers."""
    cache = random_cache(model.config, model.decoder.dtype, branches, PREFIX + tokens, seed)
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, model.config.vocab_size, (branches, tokens)).tolist()
    made = []
    for row in range(branches):
        segment = Segment(cache, row, PREFIX, tokens)
        made.append(Branch(tuple(ids[row]), "", PREFIX, tokens, (segment,), "given"))
    return Branches([made], model.fingerprint, batched=False)
