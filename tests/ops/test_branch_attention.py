"""The folded form against the oracle that rotates, maps and concatenates the caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.errors import InputError
from psynth_jax.ops import branch_attention as op
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention import (
    Context,
    ContextPart,
    OwnCache,
    Segments,
    pallas_gpu,
    pallas_tpu,
    reference,
    xla,
)
from psynth_jax.ops.cached_heads import CachedHeads
from tests.ops.forms import whole
from tests.slow import slow_but

branch_attention = jax.jit(op.branch_attention, static_argnums=(6, 7))
L, B, W, K, G, S, H = 2, 3, 3, 2, 3, 19, 10
SCALE = 0.3


def case(tokens: int, seed: int = 0, poison: bool = False):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    q, k, v = normal(B, tokens, K * G, H), normal(B, tokens, K, H), normal(B, tokens, K, H)
    start = np.array([0, 5, S], np.int32)
    own_k, own_v, part_k, part_v = (normal(L, rows, K, S, H) for rows in (B, B, 4, 4))
    segments = Segments(
        row=np.array([[3, 0, 3, 0], [1, 1, 2, 0], [2, 0, 0, 0]], np.int32),
        first=np.array([[0, 4, 9, 0], [0, 18, 7, 0], [3, 0, 0, 0]], np.int32),
        length=np.array([[6, 15, 4, 0], [1, 1, 12, 0], [13, 0, 0, 0]], np.int32),
        branch=np.array([[0, 1, 2, 0], [2, 2, 0, 0], [1, 0, 0, 0]], np.int32),
    )
    if poison:
        for row in range(B):
            own_k[:, row, :, start[row] :] = own_v[:, row, :, start[row] :] = np.nan
        used = np.zeros((4, S), bool)
        for row, first, length in zip(segments.row.ravel(), segments.first.ravel(), segments.length.ravel(), strict=True):
            used[row, first : first + length] = True
        for heads in (part_k, part_v):
            heads.transpose(1, 3, 0, 2, 4)[~used] = np.nan
    cos, sin = rope.angles(jnp.asarray(rng.integers(0, 50, (B, W))), rope.plain_frequencies(1e4, H))
    scalars = jnp.asarray(1 + 0.3 * normal(L, B, W, 4))
    part = ContextPart(CachedHeads(part_k, part_v), segments)
    whole = q, k, v, OwnCache(CachedHeads(own_k, own_v), start), Context((part, part), cos, sin, scalars)
    return jax.tree.map(jnp.asarray, whole)


@pytest.mark.parametrize("tokens", slow_but([1, 2, 17, 300], 1, 2))
def test_folded_equals_materialised(tokens: int) -> None:
    arguments = (*case(tokens), 1, SCALE)
    expected = branch_attention(*arguments, "reference")
    np.testing.assert_allclose(branch_attention(*arguments, "xla"), expected, atol=2e-5)


@pytest.mark.parametrize("tokens", slow_but([1, 5, 17], 1))
@pytest.mark.parametrize("many", [1, 1000])
def test_segments_longer_than_a_block(tokens: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """19 slots in blocks of 8: spans that begin and end anywhere, and a last block that is moved back.

    Blocks that are whole are read apart from the others, without a mask, or in one loop with them.
    """
    arguments = (*case(tokens, poison=True), 1)
    expected = branch_attention(*arguments, SCALE, "reference")
    monkeypatch.setattr(xla, "MANY_ROWS", many)
    monkeypatch.setattr(xla, "SLOT_BLOCK", 8)
    monkeypatch.setattr(xla, "QUERY_BLOCK", 4)
    monkeypatch.setattr(xla, "CAUSAL_BLOCK", 3)
    blocked = jax.jit(lambda *arguments: whole(xla.attend)(*arguments, SCALE))
    np.testing.assert_allclose(blocked(*arguments), expected, atol=2e-5)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_slots_that_are_not_read_may_hold_nan(tokens: int, implementation: str) -> None:
    clean = branch_attention(*case(tokens), 0, SCALE, implementation)
    np.testing.assert_array_equal(branch_attention(*case(tokens, poison=True), 0, SCALE, implementation), clean)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_without_context_and_cache_it_is_causal_attention(implementation: str) -> None:
    q, k, v, _, _ = case(4)
    full = branch_attention(q, k, v, None, None, 0, SCALE, implementation)
    first = branch_attention(q[:, :2], k[:, :2], v[:, :2], None, None, 0, SCALE, implementation)
    np.testing.assert_allclose(full[:, :2], first, atol=1e-6)
    np.testing.assert_allclose(full[:, 0], np.repeat(v[:, 0], G, axis=1), atol=1e-6)


@pytest.mark.parametrize("tokens", slow_but([1, 5, 17], 5))
@pytest.mark.parametrize("window", [1, 4, 9, 1000])
def test_a_window_ends_what_is_seen_of_the_own_row(tokens: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms agree, in blocks too; the context is seen whole; a window as long as everything changes nothing."""
    monkeypatch.setattr(xla, "SLOT_BLOCK", 8)
    monkeypatch.setattr(xla, "QUERY_BLOCK", 4)
    monkeypatch.setattr(xla, "CAUSAL_BLOCK", 3)
    monkeypatch.setattr(xla, "MANY_ROWS", 1)
    arguments = (*case(tokens, poison=True), 1)
    near = jnp.int32(window)
    expected = reference.attend(*arguments, SCALE, None, jnp.float32, near)
    found = jax.jit(lambda *arguments: xla.attend(*arguments, SCALE, None, jnp.float32, near))(*arguments)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
    everything = reference.attend(*arguments, SCALE, None, jnp.float32)[0]
    assert np.array_equal(expected[0], everything) == (window == 1000)


def test_what_is_outside_of_a_window_does_not_matter() -> None:
    """With a window of 4, tokens from the fifth on see none of the own cache, and the ninth only tokens 5 to 8."""
    q, k, v, own, _ = case(9)
    near = jnp.int32(4)
    whole = branch_attention(q, k, v, own, None, 1, SCALE, "xla", near)
    alone = branch_attention(q[:, 5:], k[:, 5:], v[:, 5:], None, None, 1, SCALE, "xla")
    np.testing.assert_allclose(whole[:, 8], alone[:, 3], atol=1e-6)
    np.testing.assert_allclose(whole[:, 4:], branch_attention(q, k, v, None, None, 1, SCALE, "xla", near)[:, 4:], atol=1e-6)


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
def test_the_kernels_refuse_a_window(implementation: str) -> None:
    module = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}[implementation]
    with pytest.raises(InputError, match="does not take a window"):
        module.attend(*case(1), 1, SCALE, None, jnp.float32, jnp.int32(4), interpret=True)
    with pytest.raises(InputError, match="does not take a window"):
        op.branch_attention(*case(1), 1, SCALE, implementation, jnp.int32(4))
