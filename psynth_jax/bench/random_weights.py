"""Random weights and branches of a model's shape, drawn on the device.

Weights are drawn layer by layer in the dtype in which they are kept: a model of 14 billion parameters
needs little more memory than its own 28 GB while it is drawn.  Keys and values are drawn page by page
into the model's own pool, which is written in place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

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
from psynth_jax.nn.decoder import LAYER, Decoder, parameter_letters, parameter_shapes
from psynth_jax.nn.layer_forms import Layers, SeparateLayers, are_separate

WIDTH = 0.02  # standard deviation of the weights
PREFIX = 8  # slots before a drawn branch, as a worker's prompt would leave


def random_decoder(config: DecoderConfig, dtype: jax.typing.DTypeLike, seed: int = 0, layers: Layers = "auto") -> Decoder:
    """Return a decoder with random weights on the default device; layers as for `load_model`."""
    letters, shapes = parameter_letters(config), parameter_shapes(config)
    keys = dict(zip(letters, jax.random.split(jax.random.key(seed), len(letters)), strict=True))

    def draw(drawn: Callable[..., Array], name: str) -> Array:
        mean = 1.0 if name.endswith("norm") and not config.norms_from_one else 0.0
        return drawn(keys[name], shapes[name], jnp.dtype(dtype), WIDTH, mean)

    of_layers = [name for name in letters if name.startswith(LAYER)]
    tables = {name: draw(_drawn, name) for name in letters if name not in of_layers}
    if not are_separate(layers):
        return Decoder(config, tables | {name: draw(_stacked, name) for name in of_layers})

    def part(name: str, number: int) -> Array:
        return draw(functools.partial(_layer, number), LAYER + name)

    names = [name.removeprefix(LAYER) for name in of_layers]
    return Decoder(config, tables, None, SeparateLayers.of_parts(config, names, part, fuse=True))


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


def _layer(number: int, key: Array, shape: tuple[int, ...], *rest: Any) -> Array:
    """Draw one layer as `_stacked` draws it."""
    return _drawn(jax.random.split(key, shape[0])[number], shape[1:], *rest)


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
