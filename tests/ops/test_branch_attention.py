"""The folded form against the oracle that rotates, maps and concatenates the caches."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.ops import branch_attention as op
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention import (
    Context,
    ContextPart,
    pallas_gpu,
    pallas_tpu,
    reference,
    xla,
    xla_blocks,
    xla_decode,
)
from psynth_jax.ops.cached_heads import CachedHeads
from tests.ops.forms import poisoned, reads_own, runs_of, whole
from tests.slow import exhaustive_but, slow_but

branch_attention = jax.jit(op.branch_attention, static_argnums=(5, 6))
L, B, W, K, G, S, H = 2, 3, 3, 2, 3, 19, 10
SCALE = 0.3


# row, first slot, length, branch of the runs of each row of the batch
RUNS = [
    [(3, 0, 6, 0), (0, 4, 15, 1), (3, 9, 4, 2)],
    [(1, 0, 1, 2), (1, 18, 1, 2), (2, 7, 12, 0)],
    [(2, 3, 13, 1)],
]
START = np.array([0, 5, S], np.int32)


def case(tokens: int, seed: int = 0, poison: bool = False, branches: bool = True):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    q, k, v = normal(B, tokens, K * G, H), normal(B, tokens, K, H), normal(B, tokens, K, H)
    own_k, own_v, part_k, part_v = (normal(L, rows, K, S, H) for rows in (B, B, 4, 4))
    runs = runs_of(RUNS)
    if poison:
        for row in range(B):
            own_k[:, row, :, START[row] :] = own_v[:, row, :, START[row] :] = np.nan
        poisoned(part_k, runs)
        poisoned(part_v, runs)
    cos, sin = rope.angles(jnp.asarray(rng.integers(0, 50, (B, W))), rope.plain_frequencies(1e4, H))
    scalars = jnp.asarray(1 + 0.3 * normal(L, B, W, 4))
    part = ContextPart(CachedHeads(part_k, part_v), runs)
    context = Context((part, part), cos, sin, scalars, START + 50) if branches else None
    return jax.tree.map(jnp.asarray, (q, k, v, reads_own(CachedHeads(own_k, own_v), START, context)))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_blocks, "SLOT_BLOCK", 8)
    monkeypatch.setattr(xla_blocks, "LAST_BLOCK", 4)
    monkeypatch.setattr(xla_blocks, "QUERY_BLOCK", 4)
    monkeypatch.setattr(xla, "CAUSAL_BLOCK", 3)
    monkeypatch.setattr(xla_decode, "SLOTS", 8)


@pytest.mark.parametrize("tokens", slow_but([1, 2, 17, 300], 1, 2))
def test_folded_equals_materialised(tokens: int) -> None:
    arguments = (*case(tokens), 1, SCALE)
    expected = branch_attention(*arguments, "reference")
    np.testing.assert_allclose(branch_attention(*arguments, "xla"), expected, atol=2e-5)


@pytest.mark.parametrize("tokens", slow_but([1, 5, 17], 1))
@pytest.mark.parametrize("many", [1, 1000])
@pytest.mark.usefixtures("small_blocks")
def test_runs_longer_than_a_block(tokens: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """19 slots in blocks of 8: spans that begin and end anywhere, and a last block that is moved back.

    Blocks that are whole are read apart from the others, without a mask, or in one loop with them.
    """
    arguments = (*case(tokens, poison=True), 1)
    expected = branch_attention(*arguments, SCALE, "reference")
    monkeypatch.setattr(xla_blocks, "MANY_ROWS", many)
    blocked = jax.jit(lambda *arguments: whole(xla.attend)(*arguments, SCALE))
    np.testing.assert_allclose(blocked(*arguments), expected, atol=2e-5)


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.usefixtures("small_blocks")
def test_blocks_of_one_token_are_read_several_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of one row in one step, and the last step with fewer; laid out before or by the call."""
    monkeypatch.setattr(xla_decode, "FEWEST", at_once)
    monkeypatch.setattr(xla_decode, "MOST", at_once)
    q, k, v, context = case(1, poison=True)
    expected = branch_attention(q, k, v, context, 1, SCALE, "reference")
    run = jax.jit(lambda *arguments: whole(xla.attend)(*arguments, SCALE))
    np.testing.assert_allclose(run(q, k, v, context, 1), expected, atol=2e-5)
    np.testing.assert_array_equal(run(q, k, v, op.lay_out(context), 1), run(q, k, v, context, 1))


def test_the_list_has_the_blocks_that_are_read_and_no_others(small_blocks: None) -> None:
    *_, context = case(1)
    own, first, _ = op.lay_out(context).blocks
    query, _, begin, length, _ = np.asarray(own.fields[:4]).T.tolist()
    assert int(own.count) == 0 + 1 + 3 and query == [1, 2, 2, 2]
    assert begin == [0, 0, 8, 16] and length == [5, 8, 8, 3]
    assert int(first.count) == 1 + 2 + 1 + 1 + 1 + 2 + 2
    _, row, _, _, branch = np.asarray(first.fields[:4]).T.tolist()
    assert row == [3, 0, 0, 3] and branch == [0, 1, 1, 2]
    *_, idle = case(1, branches=False)
    idle = dataclasses.replace(idle.parts[0].runs, used=jnp.zeros(B, jnp.int32))
    assert int(xla_decode.lay_out(idle, S).count) == 0


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_slots_that_are_not_read_may_hold_nan(tokens: int, implementation: str) -> None:
    clean = branch_attention(*case(tokens), 0, SCALE, implementation)
    np.testing.assert_array_equal(branch_attention(*case(tokens, poison=True), 0, SCALE, implementation), clean)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_without_context_and_cache_it_is_causal_attention(implementation: str) -> None:
    q, k, v, _ = case(4)
    full = branch_attention(q, k, v, None, 0, SCALE, implementation)
    first = branch_attention(q[:, :2], k[:, :2], v[:, :2], None, 0, SCALE, implementation)
    np.testing.assert_allclose(full[:, :2], first, atol=1e-6)
    np.testing.assert_allclose(full[:, 0], np.repeat(v[:, 0], G, axis=1), atol=1e-6)


@pytest.mark.parametrize("tokens", slow_but([1, 5, 17], 1, 5))
@pytest.mark.parametrize("window", exhaustive_but([1, 4, 9, 40, 1000], fast=[9], full=[1, 40]))
@pytest.mark.usefixtures("small_blocks")
def test_a_window_ends_what_is_seen(tokens: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms agree, in blocks too; a window as long as everything changes nothing."""
    monkeypatch.setattr(xla_blocks, "MANY_ROWS", 1)
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
    q, k, v, own = case(9, branches=False)
    near = jnp.int32(4)
    whole = branch_attention(q, k, v, own, 1, SCALE, "xla", near)
    alone = branch_attention(q[:, 5:], k[:, 5:], v[:, 5:], None, 1, SCALE, "xla")
    np.testing.assert_allclose(whole[:, 8], alone[:, 3], atol=1e-6)
    np.testing.assert_allclose(whole[:, 4:], branch_attention(q, k, v, None, 1, SCALE, "xla", near)[:, 4:], atol=1e-6)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_branch_is_seen_from_where_it_comes_within_the_window(tokens: int, implementation: str) -> None:
    """At position 70 and with a window of 30, slots at 41 and later: the first of 41 .. 45 that row 0 reads."""
    q, k, v, context = case(tokens, branches=False)
    none = dataclasses.replace(context.parts[0].runs, length=jnp.zeros((B, 2), jnp.int32))
    runs = runs_of([[(0, 2, 9, 0)], [], []], 37)
    near = runs_of([[(0, 6, 5, 0)], [], []], 41)

    def out(runs, **window):
        heads = context.parts[0].heads
        parts = ContextPart(heads, none), ContextPart(heads, jax.tree.map(jnp.asarray, runs))
        seen = dataclasses.replace(context, parts=parts, query_position=jnp.full(B, 70))
        return branch_attention(q, k, v, seen, 1, SCALE, implementation, **window)[:, 0]

    np.testing.assert_allclose(out(runs, window=jnp.int32(30)), out(near), atol=1e-6)
    assert not np.allclose(out(runs), out(near), atol=1e-3)


@pytest.mark.parametrize("tokens", slow_but([1, 5], 5))
@pytest.mark.parametrize("module", [pallas_tpu, pallas_gpu], ids=["tpu", "gpu"])
def test_windows_of_the_kernels(tokens: int, module: Any) -> None:
    q, k, v, context = wide(case(tokens))
    near = jnp.int32(9)
    expected = reference.attend(q, k, v, context, 1, SCALE, None, jnp.float32, near)
    found = module.attend(q, k, v, context, 1, SCALE, None, jnp.float32, near, interpret=True)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def wide(arguments):
    """Give a case heads of width 32, which the kernels take."""
    *new, context = arguments
    pad = lambda x, by: jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, by),))  # noqa: E731
    parts = tuple(ContextPart(jax.tree.map(lambda x: pad(x, 32 - H), part.heads), part.runs) for part in context.parts)
    cos, sin = pad(context.cos, 16 - H // 2), pad(context.sin, 16 - H // 2)
    context = dataclasses.replace(context, parts=parts, cos=cos, sin=sin)
    return *(pad(x, 32 - H) for x in new), context
