"""A language model as the library uses it: decoder, tokenizer, end tokens, and a fingerprint that names its weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from psynth_jax.axes import Array, HostArray
from psynth_jax.config import DecoderConfig
from psynth_jax.identity import Identity, Samples, identify
from psynth_jax.nn.decoder import LAYER, Decoder, layer_shapes
from psynth_jax.nn.layer_forms import StackedLayers
from psynth_jax.sharding import pick, replicated
from psynth_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """decoder with its weights; tokenizer (None: token ids only); stop_ids: what ends a text; name: where it came from.

    stored: the decoder whose weights were rounded from stored ones, and their identity; for any other decoder it is void.
    machines: what runs the decoder, see `engine.machine`; models that differ in their tokenizer share it.
    """

    decoder: Decoder
    tokenizer: Tokenizer | None
    stop_ids: frozenset[int]
    name: str
    stored: tuple[Decoder, Identity] | None = dataclasses.field(default=None, repr=False)
    machines: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        """Show what it is called, how large it is, and in which dtype."""
        count = f"{self.decoder.parameter_count:,} parameters"
        return f"Model({self.name!r}, {self.config.family}, {count}, {self.decoder.dtype.name})"

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
        if mesh == self.mesh:
            return self
        return self._with(self.decoder.on(mesh))

    @functools.cached_property
    def identity(self) -> Identity:
        """What tells this model from others: of a model from `load_model` that of its stored weights.

        Of a model that was built from arrays, these are its stored weights.
        """
        if self.stored is not None and self.stored[0] is self.decoder:
            return self.stored[1]
        return identify(self.config, _samples(self.decoder), self.decoder.dtype.name)

    @property
    def fingerprint(self) -> str:
        """The digest of the stored weights that adapters, branches and checkpoints note; see `Identity`."""
        return self.identity.fingerprint

    def _with(self, decoder: Decoder) -> Model:
        """Return this model with a decoder of the same weights."""
        stored = None if self.stored is None else (decoder, self.identity)
        return dataclasses.replace(self, decoder=decoder, stored=stored, machines={})

    def rows(self, table: str, first: int, stop: int) -> HostArray:
        """Return rows `first` to `stop` of "embedding" or "head", `[rows, D]`, without moving the rest off its devices."""
        values = self.decoder.tables()[table]
        if self.mesh is None:
            return np.asarray(values[first:stop])
        cut = jax.jit(lambda x: jax.lax.slice_in_dim(x, first, stop), out_shardings=replicated(self.mesh))
        return np.asarray(cut(values).addressable_data(0))


def _samples(decoder: Decoder) -> dict[str, HostArray]:
    """Return the sampled elements of every parameter, whatever the form of the layers."""
    layers = decoder.layers
    if isinstance(layers, StackedLayers):
        return {name: _all_sampled(value, decoder.mesh) for name, value in decoder.parameters().items()}
    found = {name: _all_sampled(value, decoder.mesh) for name, value in decoder.tables().items()}
    of_layers = {name: Samples((decoder.config.layers, *shape)) for name, shape in layer_shapes(decoder.config).items()}
    for number, name, part in layers.parts(layer_shapes(decoder.config)):
        samples = of_layers[name]
        here = np.flatnonzero(samples.places()[0] == number)
        if len(here):
            samples.set(here, _sampled(part, samples.places(here)[1:], decoder.mesh))
    return found | {LAYER + name: samples.values for name, samples in of_layers.items()}


def _all_sampled(value: Array, mesh: Mesh | None) -> HostArray:
    return _sampled(value, Samples(value.shape).places(), mesh)


def _sampled(value: Array, places: tuple[HostArray, ...], mesh: Mesh | None) -> HostArray:
    """Take some elements of a parameter without moving the rest of it off its devices."""
    if mesh is not None:
        return pick(value, places)
    return np.asarray(value)[places] if value.is_fully_addressable and _on_host(value) else np.asarray(value[places])


def _on_host(value: Array) -> bool:
    return all(device.platform == "cpu" for device in value.devices())
