"""Re-encoding and mapper as attention takes them: one rotation per branch, four scalars per layer and branch."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from psynth_jax.axes import Array, PerRow
from psynth_jax.config import DecoderConfig
from psynth_jax.mapper import IDENTITY, Mapper, mapper_scalars
from psynth_jax.nn.layers import branch_angles
from psynth_jax.nn.local import by_kind


class Folded(NamedTuple):
    """cos, sin `[B, W, H/2]` as `nn.local.by_kind` has them; scalars `[L, B, W, 4]`; see `Context`."""

    cos: Array
    sin: Array
    scalars: Array


def fold(
    mapper: Mapper | None, shift: Array, span: Array, valid: Array, config: DecoderConfig, scale: PerRow | None = None
) -> Folded:
    """Return what re-encodes and maps each branch.

    Args:
      mapper: None is the identity.
      shift, span, valid: `[B, W]` of the branches.
      scale: `[B]` how much of the mapper each row gets; None: 1.
    """
    cos, sin = by_kind(config, lambda rope: branch_angles(rope, config.head_width, shift))
    scalars = mapper_scalars(mapper, span, valid, config.layers)  # L B W 4
    if scale is not None:
        identity = jnp.array(IDENTITY, jnp.float32)
        scalars = identity + scale[:, None, None] * (scalars - identity)
    return Folded(cos, sin, scalars)


def with_own_branch(folded: Folded) -> Folded:
    """Append a branch that is nobody's: runs of a row's own tokens are read as they are."""
    return Folded(
        _appended(folded.cos, 1.0),
        _appended(folded.sin, 0.0),
        _appended(folded.scalars, IDENTITY),
    )


def _appended(of_branches: Array, values: float | tuple[float, ...]) -> Array:
    """Append a branch to `[..., W, X]`."""
    *outer, _, last = of_branches.shape
    one = jnp.broadcast_to(jnp.array(values, of_branches.dtype), (*outer, 1, last))
    return jnp.concatenate([of_branches, one], axis=-2)
