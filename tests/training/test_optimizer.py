"""What the optimiser does to parameters: AdamW, its decay, and the mapper's own rate."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from psynth_jax.mapper import Mapper
from psynth_jax.training.config import Optimizer
from psynth_jax.training.optimizer import make_optimizer
from psynth_jax.training.step import Parameters
from tests.tiny import random_lora, random_mapper, tiny_config

RATE = 1e-3


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    lora = random_lora(tiny_config(), 1, targets=("q", "down"))
    return Parameters(Mapper.from_arrays(random_mapper(1)), lora.down, lora.up)


def change(parameters: Parameters, gradient: float = 1.0, **options: Any) -> Parameters:
    """Return what the first step adds to the parameters, of a gradient that is the same everywhere."""
    config = Optimizer(learning_rate=RATE, schedule="constant", warmup=0, clip=0.0, **options)
    optimizer = make_optimizer(config, 10)
    gradients = jax.tree.map(lambda x: jnp.full_like(x, gradient), parameters)
    updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
    return jax.tree.map(jnp.subtract, optax.apply_updates(parameters, updates), parameters)


def assert_all(tree: Any, value: float) -> None:
    for leaf in jax.tree.leaves(tree):
        np.testing.assert_allclose(leaf, value, atol=1e-6)


def test_the_first_step_is_as_long_as_the_rate(parameters: Parameters) -> None:
    assert_all(change(parameters, 7.0), -RATE)


def test_the_mapper_has_a_rate_of_its_own(parameters: Parameters) -> None:
    found = change(parameters, mapper_learning_rate=5 * RATE)
    assert_all(found.mapper, -5 * RATE)
    assert_all((found.down, found.up), -RATE)


def test_weights_decay(parameters: Parameters) -> None:
    found = change(parameters, 0.0, weight_decay=0.5)
    for moved, before in zip(jax.tree.leaves(found), jax.tree.leaves(parameters), strict=True):
        np.testing.assert_allclose(moved, -RATE * 0.5 * before, atol=1e-6)
