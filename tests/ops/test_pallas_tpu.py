"""The TPU kernel in interpret mode against the oracle that rotates, maps and concatenates: output and gradients.

The function called here is the one that is compiled for TPUs in `test_compiled_for_tpu.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.errors import InputError
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention import Context, ContextPart, pallas_tpu, reference
from psynth_jax.ops.branch_attention.cases import MODELS, Case, arguments
from psynth_jax.ops.cached_heads import CachedHeads
from tests.ops.forms import reads_own, runs_of, whole
from tests.slow import exhaustive_but

ours, oracle = whole(pallas_tpu.attend, interpret=True), whole(reference.attend)
L, B, R, W, K, H, S = 2, 2, 5, 3, 2, 16, 128
SCALE = 0.3
# row, first slot, length, branch of the runs of each question.  The blocks have 64 slots.
RUNS = {
    "ragged": [[(3, 0, 5, 0), (0, 70, 58, 1), (4, 3, 125, 2)], [(2, 0, 128, 1)]],
    "inside of a block": [[(3, 7, 20, 0), (0, 65, 3, 1)], [(1, 63, 2, 2), (4, 127, 1, 0)]],
    "length 1": [[(0, 0, 1, 0)], [(4, 127, 1, 2), (0, 64, 1, 1)]],
    "two branches in one row": [[(2, 0, 40, 0), (2, 40, 41, 1), (2, 90, 9, 1)], [(2, 1, 99, 2)]],
    "shuffled and repeated": [[(4, 2, 30, 2), (1, 2, 30, 0), (4, 2, 30, 1)], [(1, 2, 30, 1), (1, 2, 30, 1)]],
    "16 runs": [[(n % R, 3 * n, n + 1, n % W) for n in range(16)], []],
    "40 pages": [[], [((7 * n) % R, (5 * n) % 120, 3, 0) for n in range(40)]],
}


def call(
    tokens: int, *parts: str, group: int = 3, own: bool = True, packed: bool = False, dtype: Any = jnp.float32, seed: int = 0
) -> tuple[Any, ...]:
    """Draw arguments.  Slots that no run has hold NaN."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731

    def heads(used: np.ndarray) -> CachedHeads:
        rows, slots = used.shape
        k, v = normal(L, rows, K, slots, H), normal(L, rows, K, slots, H)
        stored = CachedHeads.allocate((1, 1, K, 1, H), dtype, packed=packed).stored(jnp.asarray(k), jnp.asarray(v))
        if dtype == jnp.int8:
            return stored
        return jax.tree.map(lambda x: jnp.where(used[None, :, None, :, None], x, jnp.nan), stored)

    def part(name: str) -> ContextPart:
        used = np.zeros((R, S), bool)
        for row, first, length, _ in itertools.chain.from_iterable(RUNS[name]):
            used[row, first : first + length] = True
        return ContextPart(heads(used), jax.tree.map(jnp.asarray, runs_of(RUNS[name])))

    start = np.array([0, 50], np.int32)
    cos, sin = rope.angles(jnp.asarray(rng.integers(0, 50, (B, W))), rope.plain_frequencies(1e4, H))
    context = None
    if parts:
        scalars = jnp.asarray(1 + 0.3 * normal(L, B, W, 4))
        context = Context(tuple(map(part, parts)), cos, sin, scalars, jnp.asarray(start + 50))
    if own:
        context = reads_own(heads(np.arange(64) < start[:, None]), start, context)
    q, k, v = normal(B, tokens, K * group, H), normal(B, tokens, K, H), normal(B, tokens, K, H)
    compute = jnp.float32 if dtype == jnp.int8 else dtype
    return *(jnp.asarray(x, compute) for x in (q, k, v)), context


@pytest.fixture(autouse=True)
def blocks_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psynth_jax.ops.branch_attention.tpu_tiles.SLOTS", 64)


def assert_equals_the_oracle(drawn: tuple[Any, ...], atol: float = 1e-5) -> None:
    expected = jax.jit(oracle, static_argnums=5)(*drawn, 1, SCALE)
    found = jax.jit(ours, static_argnums=5)(*drawn, 1, SCALE)
    assert found.dtype == drawn[0].dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), atol=atol, rtol=0)


class TestForward:
    @pytest.mark.parametrize("name", RUNS)
    def test_runs(self, name: str) -> None:
        assert_equals_the_oracle(call(1, name))

    @pytest.mark.slow
    @pytest.mark.parametrize("tokens", [2, 17, 40])
    def test_several_tokens(self, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """In blocks of 16 tokens, the last of them padded."""
        monkeypatch.setattr("psynth_jax.ops.branch_attention.tpu_tiles.ROWS", 48)
        assert_equals_the_oracle(call(tokens, "ragged"))

    def test_several_parts(self) -> None:
        assert_equals_the_oracle(call(3, "ragged", "two branches in one row"))

    @pytest.mark.slow
    @pytest.mark.parametrize("group", [1, 5])
    def test_groups(self, group: int) -> None:
        assert_equals_the_oracle(call(2, "inside of a block", group=group))

    @pytest.mark.parametrize("tokens", [1, 20])
    def test_nothing_is_cached(self, tokens: int) -> None:
        assert_equals_the_oracle(call(tokens, own=False))

    def test_own_cache_only(self) -> None:
        assert_equals_the_oracle(call(2))

    @pytest.mark.slow
    @pytest.mark.parametrize("tokens", [1, 9])
    def test_packed(self, tokens: int) -> None:
        assert_equals_the_oracle(call(tokens, "ragged", "length 1", packed=True))

    def test_bfloat16(self) -> None:
        """Within the rounding of weights and output: both have 8 bits."""
        assert_equals_the_oracle(call(3, "ragged", dtype=jnp.bfloat16), atol=2e-2)

    @pytest.mark.slow
    @pytest.mark.parametrize("packed", [False, True])
    def test_int8(self, packed: bool) -> None:
        """The oracle reads the same 8-bit numbers, so nothing but float32 rounding is between the two."""
        assert_equals_the_oracle(call(3, "ragged", "inside of a block", packed=packed, dtype=jnp.int8), atol=2e-5)

    def test_one_head_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("psynth_jax.ops.branch_attention.tpu_tiles.FETCH_BYTES", 1)
        assert_equals_the_oracle(call(1, "ragged"))


# Two models read up to 4096 cached tokens, in one branch or four, the others 1024.
SMALL = []
for model in MODELS:
    for tokens in (1, 64):
        SMALL.append(Case(model, tokens, 1, 1024))
        if model in ("llama-3.2-1b", "qwen3-8b"):
            SMALL += [Case(model, tokens, 1, 4096), Case(model, tokens, 4, 1024)]


@pytest.mark.slow
class TestRealShapes:
    """The real models' heads at the lengths that are small enough here, in the layout that TPUs get."""

    @pytest.fixture(autouse=True)
    def whole_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("psynth_jax.ops.branch_attention.tpu_tiles.SLOTS", 512)

    @pytest.mark.parametrize("case", exhaustive_but(SMALL, full=SMALL[::4]), ids=lambda case: case.name)
    def test_output(self, case: Case) -> None:
        case = dataclasses.replace(case, own=5)
        *drawn, layer, scale = arguments(case, packed=case.model in ("smollm2-135m", "qwen2.5-0.5b", "llama-3.2-1b"))
        expected = jax.jit(oracle, static_argnums=(4, 5))(*drawn, layer, scale)
        found = jax.jit(ours, static_argnums=(4, 5))(*drawn, layer, scale)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def gradients(function: Any, drawn: tuple[Any, ...]) -> tuple[Any, ...]:
    q, k, v, context = drawn
    direction = jax.random.normal(jax.random.key(0), q.shape)

    @jax.jit
    def of(q: Any, k: Any, v: Any, scalars: Any) -> Any:
        def loss(q: Any, k: Any, v: Any, scalars: Any) -> Any:
            mapped = None if context is None else dataclasses.replace(context, scalars=scalars)
            return (function(q, k, v, mapped, 1, SCALE).astype(jnp.float32) * direction).sum()

        return jax.grad(loss, argnums=(0, 1, 2) if context is None else (0, 1, 2, 3))(q, k, v, scalars)

    return of(q, k, v, None if context is None else context.scalars)


def assert_gradients_equal_the_oracles(drawn: tuple[Any, ...], rtol: float = 1e-5) -> None:
    found, expected = gradients(ours, drawn), gradients(oracle, drawn)
    for name, one, other in zip(("q", "k", "v", "scalars"), found, expected, strict=False):
        largest = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, atol=rtol * max(largest, 1), rtol=0, err_msg=name)


@pytest.mark.slow
class TestGradients:
    """Of queries, new keys and values, and scalars; relative to the largest of each."""

    @pytest.mark.parametrize("name", ["ragged", "two branches in one row", "shuffled and repeated", "16 runs"])
    def test_runs(self, name: str) -> None:
        assert_gradients_equal_the_oracles(call(3, name))

    def test_several_blocks_of_tokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("psynth_jax.ops.branch_attention.tpu_tiles.ROWS", 48)
        assert_gradients_equal_the_oracles(call(40, "ragged", own=False))

    def test_new_tokens_that_end_inside_of_their_second_block(self) -> None:
        assert_gradients_equal_the_oracles(call(70, own=False))

    @pytest.mark.parametrize("own", [False, True])
    def test_without_a_context(self, own: bool) -> None:
        assert_gradients_equal_the_oracles(call(20, own=own))

    def test_packed(self) -> None:
        assert_gradients_equal_the_oracles(call(5, "ragged", "length 1", packed=True))

    def test_int8(self) -> None:
        assert_gradients_equal_the_oracles(call(5, "ragged", dtype=jnp.int8))


class TestRefusals:
    """What the kernel lacks is named, before anything is compiled."""

    def test_odd_widths(self) -> None:
        with pytest.raises(InputError, match="caches with 16 lanes a slot; it takes heads of 64, packed, and mul"):
            whole(pallas_tpu.attend)(*call(1, "ragged"), 1, SCALE)

    def test_two_layouts(self) -> None:
        q, k, v, own = call(1, packed=True)
        *_, context = call(1, "ragged")
        both = dataclasses.replace(context, parts=own.parts + context.parts)
        with pytest.raises(InputError, match="packed and split caches in one call"):
            whole(pallas_tpu.attend)(q, k, v, both, 1, SCALE)
