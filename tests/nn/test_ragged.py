"""Rows as a list of their tokens: there and back, and the decoder gives the same caches from both."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.nn.adapter import Lora
from psynth_jax.nn.decoder import Decoder
from psynth_jax.nn.layers import branch_angles
from psynth_jax.nn.ragged import RaggedRows
from psynth_jax.ops.branch_attention import Context, ContextPart, Runs
from psynth_jax.ops.cached_heads import CachedHeads
from psynth_jax.sharding import make_mesh
from tests.tiny import random_lora, tiny_config, tiny_decoder, token_ids

COUNTS = np.array([[5, 0, 7, 1], [0, 3, 0, 0]], np.int32)  # of two pieces; empty rows before, between and after others
SLOTS, LISTED = 8, 16
ROW_AXES = ("data", "fsdp", "branch")


def ragged_rows(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, RaggedRows]:
    """Return the same tokens as rows and as lists, and where they are."""
    rows = np.zeros((counts.size, SLOTS), np.int32)
    lists = np.zeros((len(counts), LISTED), np.int32)
    first = np.cumsum(counts, axis=1) - counts
    for row, count in enumerate(counts.ravel()):
        rows[row, :count] = token_ids(row, int(count))
        begin, piece = int(first.ravel()[row]), row // counts.shape[1]
        lists[piece, begin : begin + count] = rows[row, :count]
    return rows, lists, RaggedRows(first.ravel().astype(np.int32), counts.ravel(), SLOTS)


def encode(decoder: Decoder, tokens: np.ndarray, counts: np.ndarray, rows: RaggedRows | None) -> tuple[np.ndarray, ...]:
    """Return hidden states, and new keys and values, `[L, R, S, K, H]`."""

    @jax.jit
    def run(decoder: Decoder, tokens: jax.Array, count: jax.Array, rows: RaggedRows | None) -> tuple[jax.Array, ...]:
        axes = ROW_AXES if decoder.mesh is not None else ()
        return decoder(tokens, 0 * count, row_axes=axes, rows=rows)

    return tuple(np.asarray(x) for x in run(decoder, tokens, counts.ravel(), rows))


@pytest.mark.parametrize("mesh_axes", [None, "data=2", "branch=2,tensor=2", "fsdp=2,tensor=2"])
def test_a_list_encodes_as_its_rows_do(mesh_axes: str | None) -> None:
    counts = COUNTS if mesh_axes else COUNTS.reshape(1, -1)
    tokens, lists, rows = ragged_rows(counts)
    plain = tiny_decoder(tiny_config(mlp_width=32))
    sizes = 1 if mesh_axes is None else np.prod([int(part[-1]) for part in mesh_axes.split(",")])
    mesh = None if mesh_axes is None else make_mesh(mesh_axes, jax.devices()[:sizes])
    hidden, k, v = encode(plain, tokens, counts, None)
    listed, listed_k, listed_v = encode(plain.on(mesh), lists, counts, rows)
    for row, count in enumerate(counts.ravel()):
        piece, begin = row // counts.shape[1], int(rows.first[row])
        np.testing.assert_allclose(listed[piece, begin : begin + count], hidden[row, :count], atol=2e-5)
        for ours, theirs in ((listed_k, k), (listed_v, v)):
            copies = ours.shape[3] // theirs.shape[3]
            np.testing.assert_allclose(ours[:, row, :count, ::copies], theirs[:, row, :count], atol=2e-5)


def test_a_list_without_tokens_is_no_error() -> None:
    counts = np.zeros((1, 4), np.int32)
    _, lists, rows = ragged_rows(counts)
    hidden, k, _ = encode(tiny_decoder(tiny_config()), lists, counts, rows)
    assert np.isfinite(hidden).all() and np.isfinite(k).all()


def test_every_token_knows_its_position() -> None:
    _, _, rows = ragged_rows(COUNTS)
    offset = 100 * np.arange(8, dtype=np.int32)
    positions = np.asarray(rows.position(offset, 2, LISTED))
    assert positions[0, :13].tolist() == [*range(5), *range(200, 207), 300]
    assert positions[1, :3].tolist() == [500, 501, 502]
    assert (positions % 100).max() < SLOTS, "what lies behind the last token has a position that exists"


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_list_reads_branches_and_learns_as_its_rows_do(tokens: int) -> None:
    """Hidden states and the gradient of an adapter, through a context that every row sees from a position of its own."""
    decoder, counts = tiny_decoder(tiny_config()), np.array([[5, 0, 7, tokens]], np.int32)
    plain, lists, rows = ragged_rows(counts)
    branches = np.array([token_ids(9 + row, 16) for row in range(4)])
    _, k, v = decoder(branches, np.zeros(4, np.int32))
    heads = CachedHeads.holding(k, v, packed=False, placement=None)
    number = np.arange(4, dtype=np.int32)[:, None]
    lengths = np.array([[16], [0], [3], [9]], np.int32)
    nothing = 0 * number
    part = ContextPart(heads, Runs(number, nothing, lengths, nothing, nothing, 1 + nothing[:, 0]))
    cos, sin = branch_angles(decoder.config.rope, decoder.config.head_width, 2 * number)
    lora, offset = random_lora(decoder.config, 1), 16 + np.arange(4, dtype=np.int32)
    context = Context((part,), cos, sin, np.full((3, 4, 1, 4), 1.1, np.float32), offset)
    weight = np.random.default_rng(0).standard_normal((4, SLOTS, 22)).astype(np.float32)

    def loss(down: Any, rows: RaggedRows | None) -> tuple[jax.Array, jax.Array]:
        adapter, tokens = Lora(down, lora.up, lora.scale), plain if rows is None else lists
        hidden, _, _ = decoder(tokens, offset, context, adapter, rows=rows)
        if rows is not None:
            hidden = rows.to_rows(hidden[:, :, None], None, None)[:, :, 0]
        seen = np.arange(SLOTS)[:, None] < counts.ravel()[:, None, None]
        hidden = jnp.where(seen, hidden, 0)
        return (hidden * weight).sum(), hidden

    (expected_gradient, expected), (gradient, hidden) = (jax.grad(loss, has_aux=True)(lora.down, r) for r in (None, rows))
    np.testing.assert_allclose(hidden, expected, atol=2e-5)
    for target, one in expected_gradient.items():
        np.testing.assert_allclose(gradient[target], one, atol=1e-5 * float(jnp.abs(one).max()), err_msg=target)
