"""How the implementations of attention cut real calls: the numbers are recorded, so that none changes unseen."""

from __future__ import annotations

import re

import jax
import pytest

from psynth_jax.ops.branch_attention import branch_attention
from psynth_jax.ops.branch_attention.cases import Case, arguments
from psynth_jax.ops.branch_attention.gpu_device import Device
from psynth_jax.ops.branch_attention.gpu_tiles import GpuTiles, backward_tiles, forward_tiles
from psynth_jax.ops.branch_attention.tpu_tiles import Tiles, tiles

UNKNOWN, A100, H100 = Device(), Device(108, 163 << 10), Device(132, 227 << 10)


@pytest.mark.parametrize(
    ("tokens", "group", "kv_heads", "width", "itemsize", "sources", "slots", "expected"),
    [
        (1, 4, 8, 128, 2, 2, 4096, Tiles(8, 1, 512)),
        (1, 4, 8, 128, 2, 6, 8192, Tiles(4, 1, 512)),
        (1, 7, 2, 128, 2, 1, 512, Tiles(2, 1, 512)),
        (1, 1, 16, 256, 4, 4, 256, Tiles(2, 1, 256)),
        (5, 3, 3, 128, 4, 2, 64, Tiles(3, 5, 64)),
        (64, 4, 8, 128, 2, 2, 4096, Tiles(1, 64, 512)),
        (256, 4, 8, 128, 2, 2, 1024, Tiles(1, 256, 512)),
        (1000, 4, 8, 128, 2, 6, 8192, Tiles(1, 256, 512)),
    ],
)
def test_tpu(
    tokens: int, group: int, kv_heads: int, width: int, itemsize: int, sources: int, slots: int, expected: Tiles
) -> None:
    assert tiles(tokens, group, kv_heads, width, itemsize, sources, slots) == expected


@pytest.mark.parametrize(
    ("rows", "width", "itemsize", "cached", "heads", "slots", "device", "expected"),
    [
        (4, 128, 2, (2,), 8, 32768, UNKNOWN, GpuTiles(16, 32, 33, 4, 2)),
        (4, 128, 2, (2,), 8, 32768, H100, GpuTiles(16, 64, 33, 4, 3)),
        (4, 128, 2, (1, 2), 8, 32768, H100, GpuTiles(16, 64, 33, 4, 2)),
        (7, 128, 2, (2, 2), 64, 8192, A100, GpuTiles(16, 64, 3, 4, 2)),
        (40, 32, 2, (), 4, 40, UNKNOWN, GpuTiles(64, 64, 1, 4, 3)),
        (1024, 128, 2, (2, 2), 8, 34816, H100, GpuTiles(128, 64, 2, 8, 3)),
        (4096, 64, 4, (4,), 24, 4096, A100, GpuTiles(32, 32, 1, 4, 3)),
        (4096, 256, 2, (2,), 8, 8192, A100, GpuTiles(64, 16, 1, 4, 2)),
    ],
)
def test_gpu(
    rows: int,
    width: int,
    itemsize: int,
    cached: tuple[int, ...],
    heads: int,
    slots: int,
    device: Device,
    expected: GpuTiles,
) -> None:
    assert forward_tiles(rows, width, itemsize, cached, heads, slots, device) == expected


@pytest.mark.parametrize(
    ("rows", "width", "itemsize", "cached", "device", "expected"),
    [
        (4, 128, 2, (2,), H100, GpuTiles(16, 32, 1, 4, 2)),
        (40, 32, 2, (), UNKNOWN, GpuTiles(64, 32, 1, 4, 2)),
        (1024, 128, 2, (2, 1), H100, GpuTiles(32, 32, 1, 4, 2)),
        (1024, 64, 4, (4,), UNKNOWN, GpuTiles(16, 16, 1, 4, 2)),
        (1024, 256, 2, (2, 2), A100, GpuTiles(32, 32, 1, 4, 2)),
    ],
)
def test_gpu_way_back(
    rows: int, width: int, itemsize: int, cached: tuple[int, ...], device: Device, expected: GpuTiles
) -> None:
    assert backward_tiles(rows, width, itemsize, cached, device) == expected


@pytest.mark.parametrize(
    ("case", "slots", "logits"),
    [
        # the own cache has 64 slots, the branches' rows have 256
        (Case("smollm2-135m", tokens=20, branches=2, branch_tokens=200, own=40), {64, 128}, {(60, 64), (60, 128)}),
        # 300 tokens are 256 and 44, of 3 query heads each; 600 slots are a whole block and small ones;
        # 128 new tokens see the new keys of as many
        (
            Case("smollm2-135m", tokens=300, branches=1, branch_tokens=600),
            {512, 128},
            {(768, 512), (132, 512), (768, 128), (132, 128), (384, 128)},
        ),
        (Case("smollm2-135m", tokens=1, branches=1, branch_tokens=40), {128}, {(3, 128)}),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_xla(case: Case, slots: set[int], logits: set[tuple[int, int]]) -> None:
    """Slots of the blocks of keys that are read, and (query rows, slots) of the logits of a block."""
    *drawn, layer, scale = arguments(case)
    text = str(jax.make_jaxpr(lambda *drawn: branch_attention(*drawn, layer, scale, "xla"))(*drawn))
    read = {int(size) for size in re.findall(r"slice_sizes=\(1, 1, 3, (\d+), 64\)", text)}
    products = re.findall(r"f32\[\d+,3,(\d+),(\d+)\] = dot_general", text)  # of a row, or of several blocks at once
    assert read == slots
    assert {(int(row), int(size)) for row, size in products if int(size) in slots} == logits
