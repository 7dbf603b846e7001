"""Padded sums are concatenations: for other widths, dtypes, and what is no number."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.ops.side_by_side import side_by_side


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_it_is_a_concatenation(dtype: str) -> None:
    rng = np.random.default_rng(1)
    parts = [jnp.asarray(rng.normal(size=(2, 3, width)) * 9, dtype) for width in (4, 1, 5)]
    found = side_by_side(*parts)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, jnp.concatenate(parts, axis=-1))


def test_what_is_no_number_stays_in_its_part() -> None:
    parts = [jnp.asarray([[1.0, np.nan]]), jnp.asarray([[2.0]]), jnp.asarray([[np.inf, -np.inf, 3.0]])]
    np.testing.assert_array_equal(side_by_side(*parts), [[1, np.nan, 2, np.inf, -np.inf, 3]])


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        side_by_side(jnp.zeros((1, 2)), jnp.zeros((3, 2)))
