"""Attention to some of the keys, merged with attention to the others, is attention to all: what devices do to each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.ops.branch_attention import Context, pallas_gpu, pallas_tpu, reference, xla
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.ops.partial import Partial, finalize, merge
from tests.ops.forms import part, whole
from tests.ops.test_pallas_gpu import case
from tests.slow import exhaustive_but

pytestmark = pytest.mark.slow

PARTS = {
    "pallas_tpu": part(pallas_tpu.attend, interpret=True),
    "pallas_gpu": part(pallas_gpu.attend, interpret=True),
    "xla": part(xla.attend),
    "reference": part(reference.attend),
}
SCALE = 0.3


def on_devices(which: str, q: Any, k: Any, v: Any, context: Context) -> list[Partial]:
    """What three devices find that hold the own cache, one part of the context each, and nothing."""
    own, first, second = context.parts
    absent = dataclasses.replace(first.runs, length=first.runs.length * 0)
    nothing = dataclasses.replace(first, runs=absent)
    held = [dataclasses.replace(context, parts=parts) for parts in ((own, first), (second,), (nothing,))]
    mine = jnp.arange(3) == 0
    return [PARTS[which](q, k, v, one, 1, SCALE, flag) for one, flag in zip(held, mine, strict=True)]


def merged(partials: list[Partial]) -> Any:
    first, second, third = partials
    return finalize(merge(merge(third, first), second))


@pytest.mark.parametrize("tokens", exhaustive_but([1, 3], fast=[3]))
@pytest.mark.parametrize("which", PARTS)
def test_merged_partials_are_the_whole(which: str, tokens: int) -> None:
    drawn = case(tokens, two_parts=True)
    *some, nothing = jax.jit(on_devices, static_argnums=0)(which, *drawn)
    expected = whole(reference.attend)(*drawn, 1, SCALE)
    np.testing.assert_allclose(merged([*some, nothing]), expected, atol=2e-5)
    assert np.isneginf(nothing.row_max).all(), "a device that holds nothing adds nothing"
    assert not np.asarray(nothing.row_sum).any() and not np.asarray(nothing.out).any()


@pytest.mark.parametrize("which", ["pallas_tpu", "pallas_gpu", "xla"])
def test_gradients_through_a_merge(which: str) -> None:
    q, k, v, context = case(4, two_parts=True)
    direction = jax.random.normal(jax.random.key(0), q.shape)

    def loss(function: Any) -> Any:
        def of(q: Any, k: Any, v: Any, scalars: Any) -> Any:
            return (function(q, k, v, dataclasses.replace(context, scalars=scalars)) * direction).sum()

        return jax.jit(jax.grad(of, argnums=(0, 1, 2, 3)))(q, k, v, context.scalars)

    found = loss(lambda *drawn: merged(on_devices(which, *drawn)))
    expected = loss(lambda *drawn: whole(reference.attend)(*drawn, 1, SCALE))
    for name, one, other in zip(("q", "k", "v", "scalars"), found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * max(1, float(jnp.abs(other).max())), err_msg=name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("which", PARTS)
def test_a_query_that_is_not_finite_stays_so(which: str, tokens: int, value: float) -> None:
    """And it alone: zeros in its place would be taken for attention to nothing."""
    q, k, v, context = case(tokens, two_parts=True)
    bad = (0, 0, 1)
    drawn = (q.at[(*bad, 0)].set(value), k, v, context)
    found = np.array(merged(jax.jit(on_devices, static_argnums=0)(which, *drawn)))
    assert not np.isfinite(found[bad]).all()
    found[bad] = 0
    assert np.isfinite(found).all()


def test_int8_keeps_what_is_not_finite() -> None:
    heads = CachedHeads.allocate((1, 1, 1, 4, 8), jnp.int8, packed=False)
    drawn = np.random.default_rng(0).standard_normal((1, 1, 1, 4, 8)).astype(np.float32)
    drawn[..., 1, 3], drawn[..., 2, 5] = np.nan, np.inf
    stored = heads.stored(jnp.asarray(drawn), jnp.zeros((1, 1, 1, 4, 8)))
    k, v = stored.read(0, 0, 1, 0, 4)
    finite = np.isfinite(np.asarray(k)).all(axis=-1).ravel()
    assert finite.tolist() == [True, False, False, True]
    assert not np.asarray(v).any()
