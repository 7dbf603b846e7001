"""Rows as a list of their tokens: there and back, and the decoder gives the same caches from both."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from psynth_jax.nn.decoder import Decoder
from psynth_jax.nn.ragged import RaggedRows
from psynth_jax.sharding import make_mesh
from tests.tiny import tiny_config, tiny_decoder, token_ids

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
    """Return hidden states, and keys and values of the cache, `[L, R, K, S, H]`."""

    @jax.jit
    def run(decoder: Decoder, tokens: jax.Array, count: jax.Array, rows: RaggedRows | None) -> tuple[jax.Array, ...]:
        axes = ROW_AXES if decoder.mesh is not None else ()
        cache = decoder.allocate_cache(count.shape[0], SLOTS, row_axes=axes, packed=False)
        hidden, cache = decoder(tokens, cache, 0 * count, count, 0 * count, fresh=True, rows=rows)
        assert cache.heads.v is not None
        return hidden, cache.heads.k, cache.heads.v, cache.length

    return tuple(np.asarray(x) for x in run(decoder, tokens, counts.ravel(), rows))


@pytest.mark.parametrize("mesh_axes", [None, "data=2", "branch=2,tensor=2", "fsdp=2,tensor=2"])
def test_a_list_encodes_as_its_rows_do(mesh_axes: str | None) -> None:
    counts = COUNTS if mesh_axes else COUNTS.reshape(1, -1)
    tokens, lists, rows = ragged_rows(counts)
    plain = tiny_decoder(tiny_config(mlp_width=32))
    sizes = 1 if mesh_axes is None else np.prod([int(part[-1]) for part in mesh_axes.split(",")])
    mesh = None if mesh_axes is None else make_mesh(mesh_axes, jax.devices()[:sizes])
    hidden, k, v, _ = encode(plain, tokens, counts, None)
    listed, listed_k, listed_v, length = encode(plain.on(mesh), lists, counts, rows)
    assert length.tolist() == counts.ravel().tolist()
    for row, count in enumerate(counts.ravel()):
        piece, begin = row // counts.shape[1], int(rows.first[row])
        np.testing.assert_allclose(listed[piece, begin : begin + count], hidden[row, :count], atol=2e-5)
        for ours, theirs in ((listed_k, k), (listed_v, v)):
            copies = ours.shape[2] // theirs.shape[2]
            np.testing.assert_allclose(ours[:, row, ::copies, :count], theirs[:, row, :, :count], atol=2e-5)


def test_a_list_without_tokens_is_no_error() -> None:
    counts = np.zeros((1, 4), np.int32)
    _, lists, rows = ragged_rows(counts)
    hidden, k, _, length = encode(tiny_decoder(tiny_config()), lists, counts, rows)
    assert np.isfinite(hidden).all() and np.isfinite(k).all() and not length.any()


def test_every_token_knows_its_slot() -> None:
    _, _, rows = ragged_rows(COUNTS)
    slots = np.asarray(rows.slot(2, LISTED))
    assert slots[0, :13].tolist() == [*range(5), *range(7), 0]
    assert slots[1, :3].tolist() == [0, 1, 2]
    assert slots.max() < SLOTS, "what lies behind the last token has a position that exists"
