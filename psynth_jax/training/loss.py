"""The two objectives, summed over target tokens, with the vocabulary projected for a few positions at a time.

    cross-entropy    - log p(target)
    distillation     KL(teacher || student) over the whole vocabulary; the teacher reads the pasted text

Logits of a 152,000-word vocabulary for every target of a batch would be the largest array of a step by far.  So positions
are cut into chunks whose logits live one after another, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array, Tokens


class Sums(NamedTuple):
    """Per target position `[B, M]` float32, 0 where there is no target."""

    cross_entropy: Array
    distillation: Array


def target_losses(
    logits: Callable[[Array], Array],
    student: Array,
    teacher: Array | None,
    target: Tokens,
    weight: Array,
    chunk: int,
) -> Sums:
    """Return both objectives of every target position.

    Args:
      logits: hidden states `[.., D]` -> float32 logits `[.., V]`.
      student, teacher: `[B, M, D]` hidden states at the positions that predict targets; teacher None: no distillation.
      target: `[B, M]` int32.  weight: `[B, M]`, 0 for padding.
      chunk: positions of a row whose logits exist at once.
    """
    size = min(chunk, target.shape[1])
    pad = -target.shape[1] % size

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def of_chunk(student: Array, teacher: Array | None, target: Array, weight: Array) -> tuple[Array, Array]:
        log_p = jax.nn.log_softmax(logits(student), axis=-1)
        missed = -jnp.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
        diverged = jnp.zeros_like(missed)
        if teacher is not None:
            log_q = jax.lax.stop_gradient(jax.nn.log_softmax(logits(teacher), axis=-1))
            diverged = (jnp.exp(log_q) * (log_q - log_p)).sum(axis=-1)
        # Rows without a token hold no number that means anything.
        return jnp.where(weight > 0, missed, 0.0), jnp.where(weight > 0, diverged, 0.0)

    chunks = cut(student), None if teacher is None else cut(teacher), cut(target), cut(weight)
    _, found = jax.lax.scan(lambda carry, items: (carry, of_chunk(*items)), None, chunks)
    missed, diverged = (jnp.moveaxis(x, 0, 1).reshape(target.shape[0], -1)[:, : target.shape[1]] for x in found)
    return Sums(missed, diverged)
