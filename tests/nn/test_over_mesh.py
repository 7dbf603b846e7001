"""Partial results of several devices become the whole, in one step or in two, and so do their gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from psynth_jax.nn import over_mesh
from psynth_jax.ops.partial import Partial, finalize, merge_stacked
from psynth_jax.sharding import make_mesh

AXES = ("data", "branch")


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh("data=2,branch=2,tensor=2")


def partials(seed: int) -> Partial:
    """What 4 devices saw of [2, 3] queries; the first device saw nothing."""
    rng = np.random.default_rng(seed)
    out, row_max, row_sum = rng.standard_normal((4, 2, 3, 5)), 9 * rng.standard_normal((4, 2, 3)), rng.random((4, 2, 3))
    out[0], row_max[0], row_sum[0] = 0, -np.inf, 0
    return Partial(*(jnp.asarray(x, jnp.float32) for x in (out, row_max, row_sum)))


@pytest.mark.parametrize("gathered_bytes", [0, 1 << 20])
def test_merged_over_devices(mesh: Mesh, gathered_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_mesh, "GATHERED_BYTES", gathered_bytes)
    direction = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32)

    def on_device(stacked: Partial) -> Any:
        return finalize(over_mesh.merge_over(jax.tree.map(lambda x: x[0], stacked), mesh, AXES))

    def over(stacked: Partial) -> Any:
        return jax.shard_map(on_device, mesh=mesh, in_specs=P(AXES), out_specs=P(), check_vma=False)(stacked)

    def alone(stacked: Partial) -> Any:
        return finalize(merge_stacked(stacked))

    seen = partials(0)
    text = jax.jit(over).lower(seen).as_text()
    assert ("all_gather" in text) == (gathered_bytes > 0)
    np.testing.assert_allclose(jax.jit(over)(seen), alone(seen), atol=1e-6)

    def gradients(function: Any) -> Any:
        def loss(out: Any, row_sum: Any) -> Any:
            return (function(Partial(out, seen.row_max, row_sum)) * direction).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(seen.out, seen.row_sum)

    for one, other in zip(gradients(over), gradients(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
