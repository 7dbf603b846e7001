"""The floor of a step against numbers that were worked out by hand."""

from __future__ import annotations

import pytest

from psynth_jax.bench.floors import DeviceRates, Work, step_work
from psynth_jax.config import DecoderConfig, PlainRope
from psynth_jax.presets import preset

SMALL = DecoderConfig(
    family="llama",
    vocab_size=100,
    width=8,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=4,
    mlp_width=16,
    norm_eps=1e-5,
    rope=PlainRope(theta=1e4),
    max_positions=64,
)


def test_the_slower_of_reading_and_computing() -> None:
    device = DeviceRates(bytes_per_s=100.0, flops_per_s=1000.0)
    assert Work(bytes=300, flops=2000).floor(device) == 3.0
    assert Work(bytes=100, flops=2000).floor(device) == 2.0


def test_a_step_counted_by_hand() -> None:
    """A layer has q 8 x 16, k and v 8 x 8, o 16 x 8, and three matrices 8 x 16 of the MLP: 768 numbers."""
    layers, head, slot = 2 * (128 + 64 + 64 + 128 + 3 * 128), 100 * 8, 2 * 2 * 2 * 4
    assert layers == 2 * 768
    found = step_work(SMALL, itemsize=2, tokens=5, cached=7, rows=3)
    assert found.bytes == 2 * (layers + head + 3 * 7 * slot)
    # Five new tokens see 7 cached ones and 3 of their own on average: 2 x 16 flops for logits, 2 x 16 for output.
    attention = 2 * 4 * 16 * 3 * 5 * (7 + 3)
    assert found.flops == 2 * 3 * (5 * layers + head) + attention


def test_qwen3_14b_on_an_h200() -> None:
    """At 3.8 TB/s and 800 TFLOP/s a token takes 7.7 ms, and the first one from 8 x 1,024 cached tokens 10.6."""
    config, device = preset("qwen3-14b").config, DeviceRates(3.8e12, 8e14)
    assert step_work(config, 2, 1, 8 * 1024 + 256).floor(device) == pytest.approx(7.7e-3, rel=0.01)
    assert step_work(config, 2, 256, 8 * 1024).floor(device) == pytest.approx(10.6e-3, rel=0.01)
