"""Tiny random models for tests that need no torch: distinct sizes, and weights large enough that every token matters."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import psynth_jax as ps
from psynth_jax.config import DecoderConfig, PlainRope
from psynth_jax.mapper import HIDDEN
from psynth_jax.nn.adapter import FACTOR_LETTERS, Lora, targets_of
from psynth_jax.nn.decoder import Decoder, parameter_shapes
from psynth_jax.tokenizer import Tokenizer

# Sizes differ from each other, so that a swapped axis cannot fit by luck.
SIZES: Mapping[str, Any] = {
    "family": "llama",
    "vocab_size": 97,
    "width": 22,
    "layers": 3,
    "heads": 6,
    "kv_heads": 2,
    "head_width": 10,
    "mlp_width": 31,
    "norm_eps": 1e-5,
    "rope": PlainRope(theta=1e4),
    "max_positions": 512,
}
BYTES_VOCABULARY = 258


def tiny_config(**changed: Any) -> DecoderConfig:
    return DecoderConfig(**{**SIZES, **changed})


def tiny_decoder(config: DecoderConfig, seed: int = 0) -> Decoder:
    """Draw every parameter from its own name, so that two configs agree on the parameters that both have."""
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
        if name.endswith("norm"):
            values = 1 + 0.3 * noise
        elif name.endswith("bias") or name == "embedding":
            values = 0.3 * noise
        else:
            inputs = {"layers.o": shape[1:-1], "head": shape[-1:]}.get(name, shape[1:2])
            values = 1.4 * noise / np.sqrt(np.prod(inputs))
        parameters[name] = jnp.asarray(values, jnp.float32)
    return Decoder(config, parameters)


def tiny_model(seed: int = 0, **changed: Any) -> ps.Model:
    """A model for token ids: it has no tokenizer and no end token."""
    return ps.Model(tiny_decoder(tiny_config(**changed), seed), None, frozenset(), "tiny")


def talking_model(seed: int = 0, **changed: Any) -> ps.Model:
    """A model whose tokens are bytes, with a chat template; what it writes is rarely valid UTF-8."""
    decoder = tiny_decoder(tiny_config(vocab_size=BYTES_VOCABULARY, **changed), seed)
    tokenizer = byte_tokenizer()
    return ps.Model(decoder, tokenizer, tokenizer.stop_ids, "talking")


def byte_tokenizer() -> Tokenizer:
    return Tokenizer.of_bytes()


def random_mapper(seed: int) -> dict[str, np.ndarray]:
    """Draw mapper parameters whose scalars are far from the identity and differ between branches and layers."""
    rng = np.random.default_rng(seed)
    draws = {
        "hidden_kernel": rng.standard_normal((3, HIDDEN)),
        "hidden_bias": rng.standard_normal(HIDDEN),
        "out_kernel": 0.12 * rng.standard_normal((HIDDEN, 4)),
        "out_bias": 0.5 * rng.standard_normal(4),
    }
    return {name: values.astype(np.float32) for name, values in draws.items()}


def random_lora(config: DecoderConfig, seed: int, rank: int = 4, targets: Iterable[str] | None = None) -> Lora:
    """Draw an adapter whose update is about a third as large as the weight that it changes; None: of all that there are."""
    rng = np.random.default_rng(seed)
    sizes = config.sizes | {"A": rank}
    draws: dict[str, dict[str, Any]] = {"down": {}, "up": {}}
    for target in targets_of(config) if targets is None else targets:
        for half, letters in zip(("down", "up"), FACTOR_LETTERS[target], strict=True):
            shape = tuple(sizes[letter] for letter in letters.split())
            draws[half][target] = jnp.asarray(0.2 * rng.standard_normal(shape), jnp.float32)
    return Lora(draws["down"], draws["up"], jnp.float32(2.0))


def token_ids(seed: int, count: int, vocab_size: int = 97) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab_size, count)]
