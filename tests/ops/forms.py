"""An implementation's `attend` as the two public operations, and contexts that read a row's own cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from psynth_jax.ops.branch_attention import Context, ContextPart, Runs
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.ops.partial import Partial, normalised


def whole(attend: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """See `branch_attention`."""
    return lambda q, *arguments: attend(q, *arguments, None, q.dtype, **options)[0]


def part(attend: Callable[..., Any], **options: Any) -> Callable[..., Partial]:
    """See `branch_attention_partial`; the last argument is `with_new`."""
    return lambda *arguments: normalised(*attend(*arguments, jnp.float32, **options))


def runs_of(questions: list[list[tuple[int, int, int, int]]], positions: Any = None) -> Runs:
    """Take (row, first, length, branch) of the runs of each question; positions: of all, drawn if None.

    What lies beyond `used` is a run that would change every answer.
    """
    columns = np.ones((4, len(questions), 1 + max(map(len, questions))), np.int32)
    for question, runs in enumerate(questions):
        for index, run in enumerate(runs):
            columns[:, question, index] = run
    if positions is None:
        positions = np.random.default_rng(5).integers(-1, 60, columns[0].shape)
    used = np.array([len(runs) for runs in questions], np.int32)
    return Runs(*columns, np.broadcast_to(positions, columns[0].shape).astype(np.int32), used)


def reads_own(heads: CachedHeads, start: Any, context: Context | None, offset: int = 50) -> Context:
    """Add to a context what the rows have cached themselves, slot 0 at position `offset`."""
    start = np.asarray(start, np.int32)
    batch, width, layers = start.size, heads.width, heads.layers
    if context is None:
        angles = jnp.zeros((batch, 0, width // 2))
        scalars = jnp.zeros((layers, batch, 0, 4))
        context = Context((), angles, angles, scalars, jnp.asarray(start + offset))
    branch = context.cos.shape[1]
    runs = runs_of([[(row, 0, length, branch)] for row, length in enumerate(start)], offset)
    identity = jnp.broadcast_to(jnp.array([1.0, 0.0, 1.0, 0.0]), (layers, batch, 1, 4))
    extra = jnp.ones((batch, 1, width // 2))
    return dataclasses.replace(
        context,
        parts=(ContextPart(heads, runs), *context.parts),
        cos=jnp.concatenate([context.cos, extra], axis=1),
        sin=jnp.concatenate([context.sin, 0 * extra], axis=1),
        scalars=jnp.concatenate([context.scalars, identity], axis=2),
    )


def poisoned(heads: Any, runs: Runs) -> None:
    """Put NaN into all slots `[L, R, K, S, H]` that no run has."""
    used = np.zeros((heads.shape[1], heads.shape[3]), bool)
    for question, count in enumerate(runs.used):
        for index in range(count):
            first = runs.first[question, index]
            used[runs.row[question, index], first : first + runs.length[question, index]] = True
    heads.transpose(1, 3, 0, 2, 4)[~used] = np.nan
