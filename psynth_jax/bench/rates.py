"""What a device can do at best, measured: bytes a second of a copy, floating-point operations a second of a matmul."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psynth_jax.bench.timing import per_call

COPY_BYTES, MATMUL = 1 << 28, 2048


def copy() -> Callable[[], float]:
    """Return a measure of reading and writing `COPY_BYTES`."""
    source = jnp.zeros(COPY_BYTES // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return per_call(lambda: add(source))


def bandwidth(seconds: float) -> float:
    """Return the bytes a second of a copy that took so long."""
    return 2 * COPY_BYTES / seconds


def matmul_size() -> int:
    """Return the rows of the matrices: as many as keep a CPU busy, and four times that for matrix units."""
    return MATMUL if jax.default_backend() == "cpu" else 4 * MATMUL


def matmul(dtype: Any) -> Callable[[], float]:
    """Return a measure of multiplying two square matrices."""
    square = jnp.ones((matmul_size(),) * 2, dtype)
    multiply = jax.jit(jnp.matmul)
    return per_call(lambda: multiply(square, square))


def matmul_rate(seconds: float) -> float:
    """Return the operations a second of a matmul that took so long."""
    return 2 * matmul_size() ** 3 / seconds
