"""LoRA (arXiv 2106.09685) as its own pytree, next to the base weights and never merged into them.

Only the synthesizer uses it: workers always run the base.  A strength for each row lets both share one batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Final, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from psynth_jax.axes import Array, HostArray, PerRow, letters_to_shape
from psynth_jax.config import DecoderConfig
from psynth_jax.sharding import parameter_spec, put, replicated

# Target -> letters of the two factors.  A is the adapter rank.  q, k, v map D to heads, o maps heads to D; gate and up map D
# to the width of the MLP, down maps that to D.
FACTOR_LETTERS: Mapping[str, tuple[str, str]] = {
    "q": ("L D A", "L A N H"),
    "k": ("L D A", "L A K H"),
    "v": ("L D A", "L A K H"),
    "o": ("L N H A", "L A D"),
    "gate": ("L D A", "L A F"),
    "up": ("L D A", "L A F"),
    "down": ("L F A", "L A D"),
}
ATTENTION_TARGETS: Final = ("q", "k", "v", "o")  # the targets of the paper, and of a run that names none


def targets_of(config: DecoderConfig) -> tuple[str, ...]:
    """Return the projections that an adapter of this model may change: all but those of experts."""
    return ATTENTION_TARGETS if config.experts else tuple(FACTOR_LETTERS)


def is_array(value: object) -> bool:
    """Whether something is an array of JAX or NumPy."""
    return isinstance(value, jax.Array | np.ndarray)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lora:
    """down[target], up[target] with the letters of `FACTOR_LETTERS`; scale = alpha / rank (a float32 scalar array)."""

    down: dict[str, Array]
    up: dict[str, Array]
    scale: Array

    @classmethod
    def initialise(
        cls, config: DecoderConfig, rank: int, alpha: float, key: Array, targets: tuple[str, ...] = ATTENTION_TARGETS
    ) -> Self:
        """Return an adapter that changes nothing yet: down is Gaussian with variance 1/fan-in, up is zero.

        targets: some of `targets_of(config)`.
        """
        sizes = config.sizes | {"A": rank}
        down, up = {}, {}
        for target, own_key in zip(targets, jax.random.split(key, len(targets)), strict=True):
            down_letters, up_letters = FACTOR_LETTERS[target]
            shape = letters_to_shape(down_letters, sizes)
            down[target] = jax.random.normal(own_key, shape, jnp.float32) / math.prod(shape[1:-1]) ** 0.5
            up[target] = jnp.zeros(letters_to_shape(up_letters, sizes), jnp.float32)
        return cls(down, up, jnp.float32(alpha / rank))

    def misfits(self, config: DecoderConfig) -> list[str]:
        """List every factor that does not fit a model of this config, or has numbers that are not finite."""
        given: tuple[tuple[str, object], ...] = (("down", self.down), ("up", self.up))
        wrong = [f"{half} must be a dict of arrays" for half, factors in given if not isinstance(factors, dict)]
        if wrong or not self.down:
            return wrong or ["it has no factors"]
        for half, factors in (("down", self.down), ("up", self.up)):
            wrong += [f"{half} of {x!r} is no array" for x, value in factors.items() if not is_array(value)]
        if wrong:
            return wrong
        sizes = config.sizes | {"A": (jnp.shape(next(iter(self.down.values()))) or (0,))[-1]}
        known = {target: FACTOR_LETTERS[target] for target in targets_of(config)}
        for target in sorted({*self.down, *self.up}, key=str):
            for half, factors, letters in zip(
                ("down", "up"), (self.down, self.up), known.get(target, ("", "")), strict=True
            ):
                expected = letters_to_shape(letters, sizes) if letters else None
                if target not in factors:
                    wrong.append(f"missing {half} of {target!r}")
                elif expected != jnp.shape(factors[target]):
                    shape = list(jnp.shape(factors[target]))
                    right = "there is no such target" if expected is None else f"expected {list(expected)}"
                    wrong.append(f"{half} of {target!r} has shape {shape}, {right}")
                elif not jnp.isfinite(factors[target]).all():
                    wrong.append(f"{half} of {target!r} has numbers that are not finite")
        return wrong

    def on(self, mesh: Mesh, config: DecoderConfig) -> Self:
        """Return this adapter cut over a mesh as the weights are that it goes with."""
        return jax.tree.map(lambda x, sharding: put(np.asarray(x), sharding), self, self.shardings(mesh, config))

    def shardings(self, mesh: Mesh, config: DecoderConfig) -> Self:
        """Return how every factor is cut over a mesh: as the weights are that it goes with."""
        sizes = config.sizes | {"A": self.rank}

        def cut(factors: dict[str, Array], half: int) -> dict[str, Any]:
            return {
                target: NamedSharding(mesh, parameter_spec(FACTOR_LETTERS[target][half], sizes, mesh)) for target in factors
            }

        return type(self)(cut(self.down, 0), cut(self.up, 1), replicated(mesh))

    def by_layer(self) -> tuple[Self, ...]:
        """Return the factors of every layer, without L."""
        layers = []
        for number in range(len(next(iter(self.down.values())))):
            down = {target: factor[number] for target, factor in self.down.items()}
            up = {target: factor[number] for target, factor in self.up.items()}
            layers.append(type(self)(down, up, self.scale))
        return tuple(layers)

    @property
    def rank(self) -> int:
        """A."""
        return next(iter(self.down.values())).shape[-1]


# As a decoder takes it: stacked over L, or one for each layer.
PlacedLora: TypeAlias = Lora | tuple[Lora, ...]


def delta_of_weight(lora: Lora, target: str, layer: int) -> HostArray:
    """Return what an adapter adds to the weight `target` of a layer, in the weight's own axis order, float32."""
    down, up = (np.asarray(factors[target][layer], np.float32) for factors in (lora.down, lora.up))
    return np.float32(lora.scale) * np.tensordot(down, up, axes=1)


def lora_delta(lora: Lora | None, strength: PerRow | None, target: str, x: Array) -> Array | float:
    """Return what the adapter of one layer (factors without L) adds to the projection `target` of `x [B, T, ...]`.

    strength `[B]` scales it per row (0: base weights only); None means 1 everywhere.
    """
    if lora is None or target not in lora.down:
        return 0.0
    down, up = lora.down[target].astype(x.dtype), lora.up[target].astype(x.dtype)
    flat = x.reshape(*x.shape[:2], -1) @ down.reshape(-1, down.shape[-1])
    scale = lora.scale if strength is None else (lora.scale * strength)[:, None, None]
    return jnp.tensordot((scale * flat).astype(x.dtype), up, axes=1)
