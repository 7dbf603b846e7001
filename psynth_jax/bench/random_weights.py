"""Random weights and branches of a model's shape, drawn on the device.

Weights are drawn layer by layer in the dtype in which they are kept: a model of 14 billion parameters
needs little more memory than its own 28 GB while it is drawn.  Keys and values are drawn page by page
into the model's own pool, which is written in place.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import Array
from psynth_jax.branch import Branch, Segment
from psynth_jax.branches import Branches
from psynth_jax.config import DecoderConfig
from psynth_jax.engine.machine import branch_block, machine_of
from psynth_jax.kv.pool import Lease
from psynth_jax.kv.transfer import write_page
from psynth_jax.model import Model
from psynth_jax.nn.decoder import Decoder, parameter_letters, parameter_shapes

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


@functools.partial(jax.jit, static_argnums=(1, 2))
def _page(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> dict[str, Array]:
    """Draw the keys and values `[L, K, page, H]` of a page."""
    both = jax.random.split(key)
    return {name: jax.random.normal(each, shape, dtype) for name, each in zip("kv", both, strict=True)}


def fill_with_noise(lease: Lease, seed: int = 0) -> None:
    """Write random keys and values to all slots of a lease that has whole pages."""
    pool, key = lease.pool, jax.random.key(seed)
    layers, kv_heads, width = lease.shape
    page = pool.allocator.page
    shape = (layers, kv_heads, page, width)
    dtype = jnp.dtype(jnp.bfloat16 if pool.heads.quantised else pool.heads.k.dtype)
    with pool.lock:
        for run in lease.runs:
            for first in range(run.first, run.first + run.length, page):
                key, drawn_from = jax.random.split(key)
                values = _page(drawn_from, shape, dtype)
                heads = write_page(pool.heads, values, np.int32(run.block), np.int32(first))
                pool.replace(heads)


def random_branches(
    model: Model,
    branches: int,
    tokens: int,
    seed: int = 0,
    dtype: str | None = None,
) -> Branches:
    """Return branches of random keys and values: times do not depend on the numbers.

    They lie in the model's own pool for caches of `dtype` (None: the model's), as a worker's would.
    """
    machine = machine_of(model)
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, model.config.vocab_size, (branches, tokens)).tolist()
    pool = machine.pool(dtype or model.decoder.dtype.name, branches * (PREFIX + tokens))
    made = []
    for number in range(branches):
        lease = pool.reserve(PREFIX + tokens, branch_block(machine, 0, 1, number))
        fill_with_noise(lease, seed + number)
        segment = Segment(lease.part(PREFIX, tokens))
        made.append(Branch(tuple(ids[number]), "", PREFIX, tokens, (segment,), "given"))
    return Branches([made], model.fingerprint, batched=False)
