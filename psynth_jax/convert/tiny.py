"""A tiny model with random weights, whose tokens are bytes: for trying things out where nothing can be downloaded.

It has a chat template and every part that real models have; what it writes means nothing until it is trained.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig, PlainRope
from psynth_jax.identity import Samples
from psynth_jax.nn.decoder import parameter_shapes

TINY = "tiny-random"
HEAD_GAIN = np.float32(3.0)  # the head is the embedding: with less, no token could be nearly certain
CONFIG = DecoderConfig(
    family="llama",
    vocab_size=258,  # 256 bytes and two marks
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=16,
    mlp_width=128,
    norm_eps=1e-5,
    rope=PlainRope(theta=10_000.0),
    tied_head=True,
    max_positions=4096,
)


@dataclasses.dataclass(frozen=True)
class DrawnParameter:
    """A parameter of the tiny model; it is drawn from its own name."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def dtype_of(self, place: tuple[int, ...]) -> np.dtype:
        """Return the dtype in which a place of its stack is read."""
        return self.dtype

    @functools.cached_property
    def samples(self) -> Samples:
        """The elements that the model's fingerprint covers."""
        return Samples(self.shape)

    def complete_samples(self) -> None:
        """Draw the parameter as the float32 numbers that it is, whatever dtype it is read in."""
        self.samples.note((0,) * len(self.shape), self._draw())

    def read(self, index: tuple[slice, ...] | None = None) -> HostArray:
        """Draw the parameter, or a piece of it."""
        values = self._draw()
        return (values if index is None else values[index]).astype(self.dtype)

    def _draw(self) -> HostArray:
        if self.name.endswith("norm"):
            values = np.ones(self.shape, np.float32)
        else:
            noise = np.random.default_rng(zlib.crc32(self.name.encode())).standard_normal(self.shape, np.float32)
            inputs = {"embedding": self.shape[1:], "layers.o": self.shape[1:3]}.get(self.name, self.shape[1:2])
            values = noise / np.float32(math.prod(inputs) ** 0.5)
            if self.name == "embedding":
                values *= HEAD_GAIN
        return values


def parameters(dtype: np.dtype) -> list[DrawnParameter]:
    """Return all parameters of the tiny model."""
    return [DrawnParameter(name, shape, dtype) for name, shape in parameter_shapes(CONFIG).items()]
