"""The backward pass through the folded form against JAX's own gradients of the oracle; relative to the largest of each.

Blocks of slots are cut small, so that every loop goes around more than once and ends in a part of a block.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention import Context, ContextPart, reference, xla, xla_blocks
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.ops.partial import Partial, finalize, merge
from tests.ops.forms import part, reads_own, runs_of, whole

pytestmark = pytest.mark.slow

L, B, R, W, K, H, S = 2, 3, 5, 3, 2, 6, 37
SCALE = 0.4
# row, first slot, length, branch of the runs of each question
RUNS = {
    "ragged": [[(3, 0, 5, 0), (0, 20, 17, 1), (4, 3, 30, 2)], [(2, 0, 37, 1)], [(1, 36, 1, 0)]],
    "two branches in one row": [[(2, 0, 11, 0), (2, 11, 12, 1)], [(2, 1, 29, 2)], [(2, 0, 37, 0), (2, 5, 9, 1)]],
    "shuffled and repeated": [[(4, 2, 10, 2), (1, 2, 10, 0), (4, 2, 10, 1)], [(1, 2, 3, 1), (1, 2, 3, 1)], [(0, 7, 20, 2)]],
    "absent runs": [[(0, 5, 0, 0), (1, 3, 7, 2)], [(0, 0, 0, 0)], [(3, 30, 7, 1), (2, 37, 0, 1)]],
    "nothing": [[(0, 0, 0, 0)]] * B,
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_blocks, "SLOT_BLOCK", 8)
    monkeypatch.setattr(xla_blocks, "LAST_BLOCK", 4)


def call(
    tokens: int, *parts: str, group: int = 3, own: bool = True, packed: bool = False, dtype: Any = jnp.float32
) -> tuple[Any, ...]:
    """Draw arguments.  Slots that nothing owns hold NaN, in int8 caches 127 times NaN."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731

    def heads(used: np.ndarray) -> CachedHeads:
        rows, slots = used.shape
        k, v = normal(L, rows, K, slots, H), normal(L, rows, K, slots, H)
        stored = CachedHeads.allocate((1, 1, K, 1, H), dtype, packed=packed).stored(jnp.asarray(k), jnp.asarray(v))
        if dtype == jnp.int8:
            scales = (jnp.where(used[:, None, None], scale, jnp.nan) for scale in (stored.k_scale, stored.v_scale))
            return dataclasses.replace(stored, **dict(zip(("k_scale", "v_scale"), scales, strict=True)))
        return jax.tree.map(lambda x: jnp.where(used[None, :, None, :, None], x, jnp.nan), stored)

    def context_part(name: str) -> ContextPart:
        used = np.zeros((R, S), bool)
        for row, first, length, _ in itertools.chain.from_iterable(RUNS[name]):
            used[row, first : first + length] = True
        return ContextPart(heads(used), jax.tree.map(jnp.asarray, runs_of(RUNS[name])))

    start = np.array([0, 13, 19], np.int32)
    cos, sin = rope.angles(jnp.asarray(rng.integers(0, 50, (B, W))), rope.plain_frequencies(1e4, H))
    context = None
    if parts:
        scalars = jnp.asarray(1 + 0.3 * normal(L, B, W, 4))
        context = Context(tuple(map(context_part, parts)), cos, sin, scalars, jnp.asarray(start + 50))
    if own:
        context = reads_own(heads(np.arange(19) < start[:, None]), start, context)
    q, k, v = normal(B, tokens, K * group, H), normal(B, tokens, K, H), normal(B, tokens, K, H)
    return *map(jnp.asarray, (q, k, v)), context


Loss = Callable[[Any, Any, Any, Any], Any]  # of q, k, v and context


def gradients(loss: Loss, drawn: tuple[Any, ...]) -> dict[str, Any]:
    """Return the gradients of q, k, v, and of scalars if there is a context.  Calls of one loss and shape compile once."""
    q, k, v, context = drawn
    variables = {"q": q, "k": k, "v": v} | ({} if context is None else {"scalars": context.scalars})
    return _gradients(loss, (xla_blocks.QUERY_BLOCK, xla_blocks.SLOT_BLOCK), variables, context)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 0})
def _gradients(loss: Loss, blocks: tuple[int, int], variables: dict[str, Any], context: Any) -> dict[str, Any]:
    def of_variables(variables: dict[str, Any]) -> Any:
        mapped = None if context is None else dataclasses.replace(context, scalars=variables["scalars"])
        return loss(variables["q"], variables["k"], variables["v"], mapped)

    return jax.grad(of_variables)(variables)


@functools.cache
def of_output(module: Any, window: int | None = None) -> Loss:
    def loss(q: Any, k: Any, v: Any, context: Any) -> Any:
        direction = jax.random.normal(jax.random.key(0), q.shape)
        near = {} if window is None else {"window": jnp.int32(window)}
        return (whole(module.attend, **near)(q, k, v, context, 1, SCALE) * direction).sum()

    return loss


@functools.cache
def of_partial(module: Any, with_new: bool | None) -> Loss:
    """A loss that sees output and log-sum-exp of every query that sees anything."""

    def loss(q: Any, k: Any, v: Any, context: Any) -> Any:
        counted = None if with_new is None else jnp.asarray(with_new)
        seen = part(module.attend)(q, k, v, context, 1, SCALE, counted)
        directions = jax.random.normal(jax.random.key(0), q.shape), jax.random.normal(jax.random.key(1), q.shape[:-1])
        some = seen.row_sum > 0
        lse = jnp.where(some, seen.row_max, 0) + jnp.log(jnp.where(some, seen.row_sum, 1))
        return (finalize(seen) * directions[0]).sum() + (lse * directions[1]).sum()

    return loss


def assert_equal(found: dict[str, Any], expected: dict[str, Any], rtol: float = 1e-5) -> None:
    for name, one in found.items():
        largest = float(jnp.abs(expected[name]).max())
        np.testing.assert_allclose(one, expected[name], atol=rtol * max(largest, 1), rtol=0, err_msg=name)


def assert_gradients_equal_the_oracles(drawn: tuple[Any, ...]) -> None:
    assert_equal(gradients(of_output(xla), drawn), gradients(of_output(reference), drawn))


class TestOfTheOutput:
    @pytest.mark.parametrize("name", RUNS)
    def test_runs(self, name: str) -> None:
        assert_gradients_equal_the_oracles(call(3, name))

    @pytest.mark.parametrize("tokens", [1, 4, 11])
    def test_blocks_of_tokens(self, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(xla_blocks, "QUERY_BLOCK", 4)
        monkeypatch.setattr(xla, "CAUSAL_BLOCK", 3)
        assert_gradients_equal_the_oracles(call(tokens, "ragged"))

    @pytest.mark.parametrize("own", [False, True])
    def test_without_a_context(self, own: bool) -> None:
        assert_gradients_equal_the_oracles(call(9, own=own))

    def test_a_key_head_for_every_query_head(self) -> None:
        assert_gradients_equal_the_oracles(call(5, "ragged", group=1))

    def test_several_parts(self) -> None:
        assert_gradients_equal_the_oracles(call(2, "ragged", "shuffled and repeated", own=False))

    @pytest.mark.parametrize("window", [1, 5, 14])
    def test_window(self, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(xla_blocks, "QUERY_BLOCK", 4)
        monkeypatch.setattr(xla, "CAUSAL_BLOCK", 3)
        drawn = call(9, "ragged")
        found, expected = (gradients(of_output(module, window), drawn) for module in (xla, reference))
        assert_equal(found, expected)

    def test_packed(self) -> None:
        assert_gradients_equal_the_oracles(call(3, "ragged", packed=True))

    @pytest.mark.parametrize("packed", [False, True])
    def test_int8(self, packed: bool) -> None:
        assert_gradients_equal_the_oracles(call(3, "ragged", packed=packed, dtype=jnp.int8))

    def test_a_layer_has_its_own_scalars(self) -> None:
        found = gradients(of_output(xla), call(3, "ragged"))["scalars"]
        assert not found[0].any() and found[1].any()


class TestOfPartials:
    @pytest.mark.parametrize("with_new", [None, True, False])
    @pytest.mark.parametrize("name", ["ragged", "absent runs"])
    def test_output_and_log_sum_exp(self, name: str, with_new: bool | None) -> None:
        drawn = call(6, name)
        assert_equal(gradients(of_partial(xla, with_new), drawn), gradients(of_partial(reference, with_new), drawn))

    def test_a_merged_pair_is_the_whole(self) -> None:
        """Own tokens and some branches on one side, others on the other: as devices share the work."""

        def merged(q: Any, k: Any, v: Any, context: Any) -> Any:
            own, first, second = context.parts

            def side(parts: Any, with_new: bool) -> Partial:
                some = dataclasses.replace(context, parts=parts)
                return part(xla.attend)(q, k, v, some, 1, SCALE, jnp.asarray(with_new))

            direction = jax.random.normal(jax.random.key(0), q.shape)
            return (finalize(merge(side((own, first), True), side((second,), False))) * direction).sum()

        drawn = call(6, "ragged", "absent runs")
        assert_equal(gradients(merged, drawn), gradients(of_output(reference), drawn))

    def test_nothing_is_seen(self) -> None:
        """On both sides of a merge: no NaN comes out of infinities."""

        def merged(q: Any, k: Any, v: Any, context: Any) -> Any:
            seen = part(xla.attend)(q, k, v, context, 1, SCALE, jnp.asarray(False))
            return finalize(merge(seen, seen)).sum()

        for name, found in gradients(merged, call(6, "nothing", own=False)).items():
            np.testing.assert_array_equal(found, jnp.zeros_like(found), err_msg=name)

    def test_one_side_sees_nothing(self) -> None:
        def merged(q: Any, k: Any, v: Any, context: Any) -> Any:
            sides = (part(xla.attend)(q, k, v, context, 1, SCALE, jnp.asarray(x)) for x in (True, False))
            return (finalize(functools.reduce(merge, sides)) * jax.random.normal(jax.random.key(0), q.shape)).sum()

        drawn = call(6, "nothing", own=False)
        assert_equal(gradients(merged, drawn), gradients(of_output(reference), drawn))
