"""A language model as the library uses it: decoder, tokenizer, end tokens, and a fingerprint that names its weights."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from psynth_jax.axes import Array
from psynth_jax.config import DecoderConfig
from psynth_jax.nn.decoder import Decoder
from psynth_jax.sharding import pick
from psynth_jax.tokenizer import Tokenizer

_SAMPLES = 2048  # elements of each parameter that the fingerprint covers


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """decoder with its weights; tokenizer (None: token ids only); stop_ids: what ends a text; name: where it came from."""

    decoder: Decoder
    tokenizer: Tokenizer | None
    stop_ids: frozenset[int]
    name: str

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
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for name, value in sorted(self.decoder.parameters().items()):
            digest.update(name.encode())
            digest.update(_sampled(value, self.mesh).tobytes())
        return digest.hexdigest()


def _sampled(value: Array, mesh: Mesh | None) -> np.ndarray:
    """Take elements at evenly spaced places of a parameter, without moving the rest of it off its devices."""
    count = min(_SAMPLES, value.size)
    places = np.unravel_index(np.linspace(0, value.size - 1, count).astype(np.int64), value.shape)
    if mesh is not None:
        chosen = pick(value, places)
    else:
        chosen = np.asarray(value)[places] if value.is_fully_addressable and _on_host(value) else np.asarray(value[places])
    return chosen.astype(jnp.bfloat16)


def _on_host(value: Array) -> bool:
    return all(device.platform == "cpu" for device in value.devices())
