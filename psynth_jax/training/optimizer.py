"""AdamW with warm-up, a schedule, clipping, and a learning rate of the mapper's own."""

from __future__ import annotations

import dataclasses

import jax
import optax

from psynth_jax.training.config import Optimizer
from psynth_jax.training.step import Parameters


def learning_rate(config: Optimizer, steps: int) -> optax.Schedule:
    """Return step -> learning rate: up within `warmup` steps, then constant, or a cosine down to `final` of the peak."""
    peak, warmup = config.learning_rate, min(config.warmup, max(steps - 1, 0))
    rising = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    if config.schedule == "constant":
        falling: optax.Schedule = optax.constant_schedule(peak)
    else:
        falling = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), config.final)
    return optax.join_schedules([rising, falling], [warmup])


def make_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """Return the transformation of gradients of `Parameters` into updates."""
    parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    parts.append(
        optax.adamw(
            learning_rate(config, steps), config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay
        )
    )
    if config.mapper_learning_rate is not None:
        parts.append(_scale_mapper(config.mapper_learning_rate / config.learning_rate))
    return optax.chain(*parts)


def _scale_mapper(factor: float) -> optax.GradientTransformation:
    """Return what multiplies the mapper's updates: the last step of AdamW is linear in the learning rate."""

    def scale(updates: Parameters, _: object = None) -> Parameters:
        return dataclasses.replace(updates, mapper=jax.tree.map(lambda x: factor * x, updates.mapper))

    return optax.stateless(scale)
