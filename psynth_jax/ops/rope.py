"""Rotary position embedding in the half-split form, and the rotation that re-encodes a branch.

A head vector of width H is H/2 planes; plane i holds the entries i and i + H/2 and turns by `position * frequency[i]`:

    R(p) x = [x1 cos - x2 sin, x2 cos + x1 sin]        R(p) R(s) = R(p + s),   R(s)^T = R(-s)

The second identity is why a cached key never has to be rewritten: q . R(-s) k = (R(s) q) . k.
Frequencies and angles are float32 always.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import Array, HostArray
from psynth_jax.ops.side_by_side import side_by_side


def plain_frequencies(theta: float, head_width: int) -> HostArray:
    """Return `theta ** (-2 i / H)`, `[H/2]` float32, radians per position."""
    exponent = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    return (1.0 / np.float32(theta) ** exponent).astype(np.float32)


def llama3_frequencies(
    plain: HostArray, *, factor: float, low_freq_factor: float, high_freq_factor: float, original_positions: int
) -> HostArray:
    """Slow the long wavelengths of `plain [H/2]` by `factor`, as Llama 3.1 does."""
    wavelength = 2 * math.pi / plain
    ramp = (original_positions / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    blended = (1 - ramp) * plain / factor + ramp * plain
    slowed = np.where(wavelength > original_positions / low_freq_factor, plain / factor, blended)
    return np.where(wavelength < original_positions / high_freq_factor, plain, slowed).astype(np.float32)


def yarn_frequencies(
    plain: HostArray,
    *,
    theta: float,
    factor: float,
    original_positions: int,
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
) -> HostArray:
    """Blend `plain [H/2]` with its interpolation by `factor` over the ramp of YaRN (arXiv 2309.00071, section 3.2)."""
    half = plain.shape[0]

    def plane_with_turns(turns: float) -> float:
        return half * math.log(original_positions / (turns * 2 * math.pi)) / math.log(theta)

    low, high = plane_with_turns(beta_fast), plane_with_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    if low == high:
        high += 0.001  # the published code keeps the ramp finite this way
    ramp = np.clip((np.arange(half, dtype=np.float32) - low) / (high - low), 0, 1)
    return (plain / factor * ramp + plain * (1 - ramp)).astype(np.float32)


def angles(positions: Array, frequencies: Array) -> tuple[Array, Array]:
    """Return (cos, sin), each `[..., H/2]` float32, of integer `positions [...]`."""
    turned = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(turned), jnp.sin(turned)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate `x [..., H]` by angles whose cos and sin `[..., H/2]` broadcast against it.  Computes in float32."""
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return side_by_side(x1 * cos - x2 * sin, x2 * cos + x1 * sin).astype(x.dtype)
