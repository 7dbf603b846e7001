"""What a device can do at best, measured: bytes a second of a copy, floating-point operations a second of a matmul."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psynth_jax.bench.timing import timed

COPY_BYTES, MATMUL = 1 << 28, 2048


def copy() -> Callable[[], float]:
    """Return a measure of reading and writing `COPY_BYTES`."""
    source = jnp.zeros(COPY_BYTES // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return timed(lambda: add(source).block_until_ready())


def bandwidth(seconds: float) -> float:
    """Return the bytes a second of a copy that took so long."""
    return 2 * COPY_BYTES / seconds


def matmul(dtype: Any) -> Callable[[], float]:
    """Return a measure of multiplying two square matrices."""
    square = jnp.ones((MATMUL, MATMUL), dtype)
    multiply = jax.jit(jnp.matmul)
    return timed(lambda: multiply(square, square).block_until_ready())


def matmul_rate(seconds: float) -> float:
    """Return the operations a second of a matmul that took so long."""
    return 2 * MATMUL**3 / seconds
