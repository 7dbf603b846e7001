"""Attention calls in the shapes of real models, which tests and `psynth bench kernel` run."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import Array
from psynth_jax.ops import rope
from psynth_jax.ops.branch_attention.types import Context, ContextPart, Runs
from psynth_jax.ops.cached_heads import CachedHeads

# N, K and H of published models; several of one family share them.
MODELS: dict[str, tuple[int, int, int]] = {
    "smollm2-135m": (9, 3, 64),
    "qwen2.5-0.5b": (14, 2, 64),
    "llama-3.2-1b": (32, 8, 64),
    "qwen3-0.6b": (16, 8, 128),
    "llama-3.2-3b": (24, 8, 128),
    "qwen2.5-7b": (28, 4, 128),
    "qwen3-8b": (32, 8, 128),
    "qwen3-14b": (40, 8, 128),
    "qwen3-32b": (64, 8, 128),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """`rows` questions, each with `branches` of `branch_tokens` tokens, `own` cached tokens and `tokens` new ones."""

    model: str
    tokens: int
    branches: int
    branch_tokens: int
    own: int = 0
    rows: int = 1
    layers: int = 2

    @property
    def name(self) -> str:
        """Return a short name."""
        return f"{self.model}-t{self.tokens}-{self.branches}x{self.branch_tokens}"

    def cache_bytes(self, itemsize: int) -> int:
        """Return the bytes of the keys and values of one layer that are read."""
        _, kv_heads, width = MODELS[self.model]
        read = self.rows * (self.branches * self.branch_tokens + self.own)
        return 2 * read * kv_heads * width * itemsize

    def flops(self) -> int:
        """Return the multiply-add operations, times two, of logits and output of one layer."""
        heads, _, width = MODELS[self.model]
        seen = self.branches * self.branch_tokens + self.own + (self.tokens + 1) / 2
        return int(4 * self.rows * self.tokens * seen * heads * width)


def arguments(
    case: Case, dtype: Any = jnp.float32, cache_dtype: Any = None, *, packed: bool = False, seed: int = 0
) -> tuple[Array, Array, Array, Context, int, float]:
    """Draw the arguments of `branch_attention` for a case.

    Branch w lies in row w, behind a prompt of a few tokens; a row's own tokens come behind its branches.
    """
    heads, kv_heads, width = MODELS[case.model]
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))  # noqa: E731

    def cached(rows: int, slots: int) -> CachedHeads:
        shape = (case.layers, rows, kv_heads, slots, width)
        empty = CachedHeads.allocate((1, 1, kv_heads, 1, width), cache_dtype or dtype, packed=packed)
        return empty.stored(normal(*shape), normal(*shape))

    batch, tokens = case.rows, case.tokens
    prompts = rng.integers(1, 40, (batch, case.branches))
    slots = _capacity(int(prompts.max()) + case.branch_tokens)
    branches = np.tile(np.arange(case.branches, dtype=np.int32), (batch, 1))
    rows = np.arange(batch * case.branches, dtype=np.int32).reshape(batch, -1)
    length = np.full_like(rows, case.branch_tokens)
    used = np.full(batch, case.branches, np.int32)
    runs = Runs(rows, prompts.astype(np.int32), length, branches, np.zeros_like(rows), used)
    parts = [ContextPart(cached(rows.size, slots), runs)]
    cos, sin = rope.angles(jnp.asarray(prompts), rope.plain_frequencies(1e4, width))
    identity = jnp.array([1.0, 0.0, 1.0, 0.0])
    scalars = identity + 0.05 * normal(case.layers, batch, case.branches, 4)
    if case.own:
        one = np.ones((batch, 1), np.int32)
        row, begin = np.arange(batch, dtype=np.int32)[:, None], case.branch_tokens * one
        own = Runs(row, 0 * one, case.own * one, case.branches * one, begin, one[:, 0])
        parts.append(ContextPart(cached(batch, _capacity(case.own)), own))
        cos, sin = (jnp.pad(x, ((0, 0), (0, 1), (0, 0)), constant_values=n) for x, n in ((cos, 1), (sin, 0)))
        scalars = jnp.concatenate([scalars, jnp.broadcast_to(identity, (case.layers, batch, 1, 4))], axis=2)
    query_position = np.full(batch, case.branch_tokens + case.own, np.int32)
    context = Context(tuple(parts), cos, sin, scalars, query_position)
    q, k, v = (normal(batch, tokens, n, width).astype(dtype) for n in (heads, kv_heads, kv_heads))
    return q, k, v, context, case.layers - 1, width**-0.5


def _capacity(slots: int) -> int:
    return -(-slots // 512) * 512 if slots > 256 else 1 << max(slots - 1, 63).bit_length()
