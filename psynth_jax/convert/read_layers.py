"""Read a model layer by layer, each to its devices and in the form that runs, before the next."""

from __future__ import annotations

import functools
import logging

import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from psynth_jax.axes import Array, HostArray
from psynth_jax.convert.stream import ModelStream, Stored
from psynth_jax.nn.decoder import LAYER, Decoder, layer_shardings, shardings_of
from psynth_jax.nn.layer_forms import SeparateLayers
from psynth_jax.sharding import from_pieces

_PROGRESS = logging.getLogger("psynth_jax.progress")


def read_separate(stream: ModelStream, mesh: Mesh | None) -> Decoder:
    """Read a model with separate layers.  Raises as `Stored.read` does."""
    config = stream.config
    of_tables = None if mesh is None else shardings_of(config, mesh)
    stacked = {}
    tables = {}
    for stored in stream.parameters:
        if stored.name.startswith(LAYER):
            stacked[stored.name.removeprefix(LAYER)] = stored
        else:
            _PROGRESS.info("loading %s, %s", stream.name, stored.name)
            tables[stored.name] = _table(stored, None if of_tables is None else of_tables[stored.name])
    shardings = None if mesh is None else layer_shardings(config, mesh)

    def part(name: str, number: int) -> Array:
        _PROGRESS.info("loading %s, layer %d of %d", stream.name, number + 1, config.layers)
        stored = stacked[name]
        if shardings is None:
            return _of_layer(stored, number)
        return from_pieces(stored.shape[1:], shardings[name], functools.partial(_of_layer, stored, number))

    layers = SeparateLayers.of_parts(config, list(stacked), part, fuse=mesh is None)
    return Decoder(config, tables, mesh, layers)


def _table(stored: Stored, sharding: NamedSharding | None) -> Array:
    return jnp.asarray(stored.read()) if sharding is None else from_pieces(stored.shape, sharding, stored.read)


def _of_layer(stored: Stored, number: int, index: tuple[slice, ...] | None = None) -> HostArray:
    """Read one layer of a stacked parameter, or the piece `index` of it."""
    within = tuple(slice(None) for _ in stored.shape[1:]) if index is None else index
    return stored.read((slice(number, number + 1), *within))[0]
