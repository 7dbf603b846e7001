"""A language model as the library uses it: decoder, tokenizer, end tokens, and a fingerprint that names its weights."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from psynth_jax.axes import Array, HostArray
from psynth_jax.config import DecoderConfig
from psynth_jax.nn.decoder import Decoder
from psynth_jax.sharding import pick, replicated
from psynth_jax.tokenizer import Tokenizer

_SAMPLES = 2048  # elements of each parameter that the fingerprint covers


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """decoder with its weights; tokenizer (None: token ids only); stop_ids: what ends a text; name: where it came from."""

    decoder: Decoder
    tokenizer: Tokenizer | None
    stop_ids: frozenset[int]
    name: str

    def __repr__(self) -> str:
        """Show what it is called, how large it is, and in which dtype."""
        count = sum(value.size for value in self.decoder.parameters().values())
        return f"Model({self.name!r}, {self.config.family}, {count:,} parameters, {self.decoder.dtype.name})"

    @property
    def config(self) -> DecoderConfig:
        """The decoder's config."""
        return self.decoder.config

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the weights lie on; None: one."""
        return self.decoder.mesh

    def on(self, mesh: Mesh | None) -> Model:
        """Return this model on other devices; see `Decoder.on`."""
        return self if mesh == self.mesh else dataclasses.replace(self, decoder=self.decoder.on(mesh))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the config and of evenly spaced elements of every parameter.

        Elements are rounded to bfloat16, so a model loaded in bfloat16 or float32 is the same model.  Loaded in float16
        it has been rounded twice, and is another.
        """
        parameters = self.decoder.parameters()
        return digest(self.config, {name: _sampled(value, self.mesh) for name, value in parameters.items()})

    def rows(self, table: str, first: int, stop: int) -> HostArray:
        """Return rows `first` to `stop` of "embedding" or "head", `[rows, D]`, without moving the rest off its devices."""
        values = self.decoder.parameters()[table]
        if self.mesh is None:
            return np.asarray(values[first:stop])
        cut = jax.jit(lambda x: jax.lax.slice_in_dim(x, first, stop), out_shardings=replicated(self.mesh))
        return np.asarray(cut(values).addressable_data(0))

    def writes(self, vocabulary: int | None) -> Model:
        """Return this model, which writes only the first `vocabulary` tokens; None: all of them."""
        return dataclasses.replace(self, decoder=self.decoder.writes(vocabulary))


def digest(config: DecoderConfig, samples: Mapping[str, HostArray]) -> str:
    """Return the fingerprint of a model from what `sample_places` picks of every parameter."""
    summed = hashlib.sha256(config.spelled.encode())
    for name, values in sorted(samples.items()):
        summed.update(name.encode())
        summed.update(values.astype(jnp.bfloat16).tobytes())
    return summed.hexdigest()


def sample_places(shape: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Return the evenly spaced places of a parameter that a fingerprint covers: an index array for each axis."""
    size = math.prod(shape)
    return np.unravel_index(np.linspace(0, size - 1, min(_SAMPLES, size)).astype(np.int64), tuple(shape))


def _sampled(value: Array, mesh: Mesh | None) -> HostArray:
    """Take the sampled elements of a parameter without moving the rest of it off its devices."""
    places = sample_places(value.shape)
    if mesh is not None:
        return pick(value, places)
    return np.asarray(value)[places] if value.is_fully_addressable and _on_host(value) else np.asarray(value[places])


def _on_host(value: Array) -> bool:
    return all(device.platform == "cpu" for device in value.devices())
