"""Published models by short name: their sizes as configs, and where their weights are.

The sizes alone are enough to compile and to count; nothing is downloaded here.  Knows no file format.
"""

from __future__ import annotations

import dataclasses

from psynth_jax.config import DecoderConfig, Llama3Rope, LocalLayers, PlainRope
from psynth_jax.errors import UserError, shown


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published model: its config, and its "owner/name" on the Hugging Face hub."""

    config: DecoderConfig
    hub_id: str


def _qwen3(layers: int, width: int, heads: int, mlp_width: int, tied: bool) -> DecoderConfig:
    return DecoderConfig(
        family="qwen3",
        vocab_size=151_936,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_width=128,
        mlp_width=mlp_width,
        norm_eps=1e-6,
        rope=PlainRope(theta=1_000_000.0),
        qk_norm=True,
        tied_head=tied,
        max_positions=40_960,
    )


def _qwen3_moe(layers: int, width: int, heads: int, expert_width: int) -> DecoderConfig:
    return DecoderConfig(
        family="qwen3_moe",
        vocab_size=151_936,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=4,
        head_width=128,
        mlp_width=expert_width,
        norm_eps=1e-6,
        rope=PlainRope(theta=1_000_000.0),
        qk_norm=True,
        max_positions=40_960,
        experts=128,
        experts_per_token=8,
        norm_expert_weights=True,
    )


def _qwen25(
    layers: int, width: int, heads: int, kv_heads: int, mlp_width: int, vocab_size: int, tied: bool
) -> DecoderConfig:
    return DecoderConfig(
        family="qwen2",
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=width // heads,
        mlp_width=mlp_width,
        norm_eps=1e-6,
        rope=PlainRope(theta=1_000_000.0),
        qkv_bias=True,
        tied_head=tied,
        max_positions=32_768,
    )


def _llama3(layers: int, width: int, heads: int, mlp_width: int, rope_factor: float, tied: bool) -> DecoderConfig:
    rope = Llama3Rope(
        theta=500_000.0, factor=rope_factor, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192
    )
    return DecoderConfig(
        family="llama",
        vocab_size=128_256,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_width=width // heads,
        mlp_width=mlp_width,
        norm_eps=1e-5,
        rope=rope,
        tied_head=tied,
        max_positions=131_072,
    )


def _smollm2(layers: int, width: int, heads: int, kv_heads: int, mlp_width: int, theta: float) -> DecoderConfig:
    return DecoderConfig(
        family="llama",
        vocab_size=49_152,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=64,
        mlp_width=mlp_width,
        norm_eps=1e-5,
        rope=PlainRope(theta=theta),
        tied_head=True,
        max_positions=8192,
    )


def _gemma3(layers: int, width: int, mlp_width: int) -> DecoderConfig:
    return DecoderConfig(
        family="gemma3_text",
        vocab_size=262_144,
        width=width,
        layers=layers,
        heads=4,
        kv_heads=1,
        head_width=256,
        mlp_width=mlp_width,
        norm_eps=1e-6,
        rope=PlainRope(theta=1_000_000.0),
        qk_norm=True,
        tied_head=True,
        max_positions=32_768,
        activation="gelu_tanh",
        query_scale=256**-0.5,
        scaled_embedding=True,
        norms_from_one=True,
        norms_after=True,
        local=LocalLayers(window=512, global_every=6, rope=PlainRope(theta=10_000.0)),
    )


PRESETS: dict[str, Preset] = {
    "qwen3-0.6b": Preset(_qwen3(28, 1024, 16, 3072, tied=True), "Qwen/Qwen3-0.6B"),
    "qwen3-1.7b": Preset(_qwen3(28, 2048, 16, 6144, tied=True), "Qwen/Qwen3-1.7B"),
    "qwen3-4b": Preset(_qwen3(36, 2560, 32, 9728, tied=True), "Qwen/Qwen3-4B"),
    "qwen3-8b": Preset(_qwen3(36, 4096, 32, 12_288, tied=False), "Qwen/Qwen3-8B"),
    "qwen3-14b": Preset(_qwen3(40, 5120, 40, 17_408, tied=False), "Qwen/Qwen3-14B"),
    "qwen3-32b": Preset(_qwen3(64, 5120, 64, 25_600, tied=False), "Qwen/Qwen3-32B"),
    "qwen3-30b-a3b": Preset(_qwen3_moe(48, 2048, 32, 768), "Qwen/Qwen3-30B-A3B"),
    "qwen3-235b-a22b": Preset(_qwen3_moe(94, 4096, 64, 1536), "Qwen/Qwen3-235B-A22B"),
    "llama-3.2-1b": Preset(_llama3(16, 2048, 32, 8192, 32.0, tied=True), "meta-llama/Llama-3.2-1B-Instruct"),
    "llama-3.2-3b": Preset(_llama3(28, 3072, 24, 8192, 32.0, tied=True), "meta-llama/Llama-3.2-3B-Instruct"),
    "llama-3.1-8b": Preset(_llama3(32, 4096, 32, 14_336, 8.0, tied=False), "meta-llama/Llama-3.1-8B-Instruct"),
    "qwen2.5-0.5b": Preset(_qwen25(24, 896, 14, 2, 4864, 151_936, tied=True), "Qwen/Qwen2.5-0.5B-Instruct"),
    "qwen2.5-1.5b": Preset(_qwen25(28, 1536, 12, 2, 8960, 151_936, tied=True), "Qwen/Qwen2.5-1.5B-Instruct"),
    "qwen2.5-3b": Preset(_qwen25(36, 2048, 16, 2, 11_008, 151_936, tied=True), "Qwen/Qwen2.5-3B-Instruct"),
    "qwen2.5-7b": Preset(_qwen25(28, 3584, 28, 4, 18_944, 152_064, tied=False), "Qwen/Qwen2.5-7B-Instruct"),
    "gemma-3-270m": Preset(_gemma3(18, 640, 2048), "google/gemma-3-270m-it"),
    "gemma-3-1b": Preset(_gemma3(26, 1152, 6912), "google/gemma-3-1b-it"),
    "smollm2-135m": Preset(_smollm2(30, 576, 9, 3, 1536, 100_000.0), "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "smollm2-360m": Preset(_smollm2(32, 960, 15, 5, 2560, 100_000.0), "HuggingFaceTB/SmolLM2-360M-Instruct"),
    "smollm2-1.7b": Preset(_smollm2(24, 2048, 32, 32, 8192, 130_000.0), "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
}


def preset(name: str) -> Preset:
    """Return a preset by name.  Raises `UserError` listing the names when there is none."""
    if name not in PRESETS:
        raise UserError(f"there is no model called {shown(name)}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]
