"""The least time that a step can take: the larger of reading its bytes and computing its flops.

    floor   max(bytes / bytes a second, flops / flops a second)

Bytes are those of the weights that the step multiplies with and of the cached keys and values that
it reads; an embedding is only looked up.  Both rates are measured: see `rates.py`.
"""

from __future__ import annotations

import dataclasses

from psynth_jax.config import DecoderConfig
from psynth_jax.nn.decoder import numbers_per_token


@dataclasses.dataclass(frozen=True)
class DeviceRates:
    """What a device can do at best, as measured."""

    bytes_per_s: float
    flops_per_s: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step has to read and to compute."""

    bytes: int
    flops: int

    def floor(self, rates: DeviceRates) -> float:
        """Return the least seconds that this work takes."""
        return max(self.bytes / rates.bytes_per_s, self.flops / rates.flops_per_s)


def step_work(
    config: DecoderConfig,
    itemsize: int,
    tokens: int,
    cached: int,
    rows: int = 1,
) -> Work:
    """Count a step in which each of `rows` rows reads `tokens` new and `cached` cached tokens.

    The head computes the logits of one token a row.  Of experts only those that one token chooses
    are counted, so with experts the floor is lower than it has to be.

    Args:
      config: the model.
      itemsize: bytes of a number, of weights and of caches.
      tokens: new tokens of a row.
      cached: tokens of a row whose keys and values are read from a cache.
      rows: rows of the batch.
    """
    layers = numbers_per_token(config)
    head = config.vocab_size * config.width
    slot = 2 * config.layers * config.kv_heads * config.head_width
    # A new token sees the cached ones and, on average, half of the new ones.
    seen = cached + (tokens + 1) / 2
    attention = 4 * config.layers * config.heads * config.head_width * rows * tokens * seen
    multiplied = 2 * rows * (tokens * layers + head)
    return Work(itemsize * (layers + head + rows * cached * slot), int(multiplied + attention))
