"""The cache mapper against its formula, written once more in NumPy, one scalar at a time."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.errors import AdapterError
from psynth_jax.mapper import IDENTITY, Mapper, mapper_scalars
from tests.tiny import random_mapper

L = 5
SPAN = np.array([[1, 40, 7], [700, 3, 0]], np.int32)
VALID = np.array([[True, True, True], [True, True, False]])


def expected_scalars(
    parameters: dict[str, np.ndarray], span: int, branches: int, layer: int, layers: int
) -> tuple[float, float, float, float]:
    """aK, bK, aV, bV in float64."""
    hidden_kernel, hidden_bias, out_kernel, out_bias = (
        parameters[name].astype(np.float64) for name in ("hidden_kernel", "hidden_bias", "out_kernel", "out_bias")
    )
    features = (math.log1p(span), math.log1p(branches), layer / (layers - 1) if layers > 1 else 0.0)
    hidden = []
    for unit in range(hidden_bias.size):
        x = sum(feature * hidden_kernel[i, unit] for i, feature in enumerate(features)) + hidden_bias[unit]
        hidden.append(x / (1 + math.exp(-x)))
    raw = [sum(h * out_kernel[i, o] for i, h in enumerate(hidden)) + out_bias[o] for o in range(4)]
    reach = [0.1 * math.tanh(r) for r in raw]
    return 1 + reach[0], reach[1], 1 + reach[2], reach[3]


@pytest.mark.parametrize("layers", [1, L])
def test_scalars_are_the_published_formula(layers: int) -> None:
    parameters = random_mapper(3)
    scalars = mapper_scalars(Mapper.from_arrays(parameters), jnp.asarray(SPAN), jnp.asarray(VALID), layers)
    assert scalars.shape == (layers, 2, 3, 4)
    assert scalars.dtype == jnp.float32
    for question, branch in zip(*np.nonzero(VALID), strict=True):
        for layer in range(layers):
            expected = expected_scalars(parameters, int(SPAN[question, branch]), int(VALID[question].sum()), layer, layers)
            np.testing.assert_allclose(scalars[layer, question, branch], expected, atol=1e-6, rtol=0)
    assert np.ptp(np.asarray(scalars), axis=2).max() > 1e-3, "a mapper that treats all branches alike tests nothing"


def test_a_new_mapper_is_exactly_the_identity() -> None:
    scalars = mapper_scalars(Mapper.initialise(jax.random.key(4)), jnp.asarray(SPAN), jnp.asarray(VALID), L)
    np.testing.assert_array_equal(scalars, np.broadcast_to(np.float32(IDENTITY), (L, 2, 3, 4)))
    np.testing.assert_array_equal(mapper_scalars(None, jnp.asarray(SPAN), jnp.asarray(VALID), L), scalars)


def test_a_new_mapper_can_learn() -> None:
    """Only its last layer is zero: a gradient reaches it through the hidden units."""

    def total(mapper: Mapper) -> jax.Array:
        return mapper_scalars(mapper, jnp.asarray(SPAN), jnp.asarray(VALID), L).sum()

    gradient = jax.grad(total)(Mapper.initialise(jax.random.key(4)))
    assert np.abs(gradient.out_kernel).max() > 0 and np.abs(gradient.out_bias).min() > 0


@pytest.mark.parametrize("name", ["hidden_kernel", "hidden_bias", "out_kernel", "out_bias"])
def test_every_parameter_matters(name: str) -> None:
    parameters = random_mapper(3)
    before = mapper_scalars(Mapper.from_arrays(parameters), jnp.asarray(SPAN), jnp.asarray(VALID), L)
    changed = Mapper.from_arrays({**parameters, name: parameters[name] + np.float32(0.1)})
    after = mapper_scalars(changed, jnp.asarray(SPAN), jnp.asarray(VALID), L)
    assert np.abs(before - after).max() > 1e-4


def test_padding_is_not_counted_as_a_branch() -> None:
    mapper = Mapper.from_arrays(random_mapper(3))
    padded = mapper_scalars(mapper, jnp.asarray(SPAN[1:]), jnp.asarray(VALID[1:]), L)
    exact = mapper_scalars(mapper, jnp.asarray(SPAN[1:, :2]), jnp.asarray(VALID[1:, :2]), L)
    np.testing.assert_allclose(padded[:, :, :2], exact, atol=1e-7)
    assert np.isfinite(padded).all()


def test_another_hidden_width_is_taken_from_the_arrays() -> None:
    narrow = random_mapper(3)
    narrow = {
        "hidden_kernel": narrow["hidden_kernel"][:, :7],
        "hidden_bias": narrow["hidden_bias"][:7],
        "out_kernel": narrow["out_kernel"][:7],
        "out_bias": narrow["out_bias"],
    }
    scalars = mapper_scalars(Mapper.from_arrays(narrow), jnp.asarray([[9]]), jnp.asarray([[True]]), L)
    np.testing.assert_allclose(scalars[2, 0, 0], expected_scalars(narrow, 9, 1, 2, L), atol=1e-6, rtol=0)


def test_all_that_is_wrong_with_the_arrays_is_listed() -> None:
    arrays = random_mapper(3)
    del arrays["out_bias"]
    arrays["hidden_kernel"] = arrays["hidden_kernel"].T
    arrays["surplus"] = np.zeros(1, np.float32)
    with pytest.raises(AdapterError) as caught:
        Mapper.from_arrays(arrays)
    message = str(caught.value)
    assert "missing out_bias" in message
    assert "extra surplus" in message
    assert "hidden_kernel has shape [32, 3], expected [3, 32]" in message
    assert "\n" not in message
