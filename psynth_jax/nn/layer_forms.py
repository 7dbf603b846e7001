"""The two forms in which a decoder holds its layers, and how each runs through them.

    stacked     name -> [L, ...]          scanned: a TPU reads a layer's slice where it lies
    separate    layer -> name -> [...]    a loop: a GPU would copy every slice out of its stack

Separate layers on one device are fused: matrices that read the same input are one, and all have two
axes.  Over a mesh they stay apart, since each is cut along an axis of its own.

    qkv       [D, (N + 2 K) H]    q | k | v, heads flattened
    o         [N H, D]
    gate_up   [D, 2 F]            gate | up; not of experts
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Self, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psynth_jax.axes import Array, Hidden, HostArray, KeysOrValues
from psynth_jax.config import DecoderConfig
from psynth_jax.errors import ConfigError, shown
from psynth_jax.nn.adapter import Lora, PlacedLora
from psynth_jax.nn.local import Layer

Layers: TypeAlias = Literal["auto", "stacked", "separate"]
LayerWeights: TypeAlias = Mapping[str, Array]
# Of a layer: hidden states, which it is, weights, LoRA -> hidden states, new keys, new values.
Body: TypeAlias = Callable[[Hidden, Layer, LayerWeights, Lora | None], tuple[Hidden, KeysOrValues, KeysOrValues]]

# A fused matrix -> those whose columns stand side by side in it.
_ATTENTION: Final = {"qkv": ("q", "k", "v"), "o": ("o",)}
_FUSED: Final = _ATTENTION | {"gate_up": ("gate", "up")}


class StackedLayers(nnx.Module):
    """Parameters `[L, ...]` by name."""

    def __init__(self, weights: Mapping[str, Array]):
        """Take the arrays as they are."""
        self.weights = nnx.Dict({name: nnx.Param(value) for name, value in sorted(weights.items())})

    def run(
        self, config: DecoderConfig, body: Body, x: Hidden, lora: PlacedLora | None, remat: bool
    ) -> tuple[Hidden, Array, Array]:
        """Return hidden states, and new keys and values `[L, B, T, K, H]`.

        lora: stacked.  remat: keep only every layer's input for the backward pass, and compute
        the layer again.
        """
        assert not isinstance(lora, tuple)

        def step(x: Hidden, layer: tuple[Any, ...]) -> tuple[Hidden, tuple[Array, Array]]:
            number, weights, factors = layer
            x, k, v = body(x, Layer(number), weights, None if lora is None else Lora(factors[0], factors[1], lora.scale))
            return x, (k, v)

        weights = {name: value[...] for name, value in self.weights.items()}
        factors = None if lora is None else (lora.down, lora.up)
        numbers = jnp.arange(config.layers)
        step = jax.checkpoint(step, prevent_cse=False) if remat else step
        x, (k, v) = jax.lax.scan(step, x, (numbers, weights, factors))
        return x, k, v

    def stacked(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        """Name -> `[L, ...]`."""
        return {name: self.weights[name][...] for name in shapes}


class SeparateLayers(nnx.Module):
    """Parameters of each layer by name, as `sources_of_layer` lists them.  Not to be trained."""

    def __init__(self, layers: Sequence[LayerWeights]):
        """Take the arrays as they are."""
        # Plain arrays: hundreds of Params would make every call of a compiled program 1 ms longer.
        self.layers = nnx.data(tuple(dict(layer) for layer in layers))

    @classmethod
    def of_parts(cls, config: DecoderConfig, names: Sequence[str], part: Callable[[str, int], Any], *, fuse: bool) -> Self:
        """Make them layer by layer.

        names: of the parameters of a layer that is not fused.  part: returns one of them, given
        its name and the layer's number; NumPy's arrays go to the default device.  fuse: as on one
        device.
        """
        sources = sources_of_layer(config, names, fuse)
        layers = []
        for number in range(config.layers):
            layer = {}
            for name, parts in sources.items():
                given = [part(source, number) for source in parts]
                value = fused(name, given) if fuse else given[0]
                layer[name] = jnp.asarray(value) if isinstance(value, np.ndarray) else value
            layers.append(layer)
        return cls(layers)

    def run(
        self, config: DecoderConfig, body: Body, x: Hidden, lora: PlacedLora | None, remat: bool
    ) -> tuple[Hidden, Array, Array]:
        """Do as `StackedLayers.run` does, but for `remat`, which has to be False.

        lora: stacked, or one for each layer, which spares slices.
        """
        assert not remat
        keys, values = [], []
        if isinstance(lora, Lora):
            lora = lora.by_layer()
        body = _once(body, late="qkv" in self.layers[0])
        for number, weights in enumerate(self.layers):
            layer = Layer.known(config, number)
            x, k, v = body(x, layer, weights, None if lora is None else lora[number])
            keys.append(k)
            values.append(v)
        return x, jnp.stack(keys), jnp.stack(values)

    def parts(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[int, str, Array]]:
        """Yield number of the layer, name, and array of every parameter as it is in a stacked one.

        shapes: of a layer's parameters that are not fused.
        """
        for number, layer in enumerate(self.layers):
            for name, value in layer.items():
                for source, part in unfused(name, value, shapes):
                    yield number, source, part

    def stacked(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        """Name -> `[L, ...]`, copies on the host; shapes as for `parts`."""
        found: dict[str, list[HostArray]] = {name: [] for name in shapes}
        for _, name, part in self.parts(shapes):
            found[name].append(np.asarray(part))
        return {name: np.stack(parts) for name, parts in found.items()}


def _once(body: Body, late: bool) -> Body:
    """Have a body traced and lowered once for each kind of layer; XLA puts it in the place of every call.

    late: on a CPU, at the end, so that XLA optimises one body instead of all, and emits its kernels once.  It cannot do
    so over a mesh, nor with JAX before 0.12.
    """
    way = getattr(getattr(jax, "Inline", None), "XLA_LATE", None)
    if late and way is not None and jax.default_backend() == "cpu":
        return jax.jit(body, inline=way)
    return jax.jit(body)


def are_separate(layers: object) -> bool:
    """Whether `layers` asks for separate ones; "auto" is what suits inference on the default device.

    Raises `ConfigError` for what is none of `Layers`.
    """
    if layers not in get_args(Layers):
        names = ", ".join(get_args(Layers))
        raise ConfigError(f"layers is {shown(layers)}; it must be one of {names}")
    if layers == "auto":
        return jax.default_backend() != "tpu"
    return layers == "separate"


def sources_of_layer(config: DecoderConfig, names: Sequence[str], fuse: bool) -> dict[str, tuple[str, ...]]:
    """Return the parameters of a separate layer, each with those of a stacked one that it is made of.

    names: of the stacked ones.  fuse: as on one device.
    """
    made: dict[str, tuple[str, ...]] = {}
    if fuse:
        made |= _ATTENTION if config.experts else _FUSED
    taken: set[str] = set()
    for sources in made.values():
        taken.update(sources)
    return {name: (name,) for name in names if name not in taken} | made


def fused(name: str, matrices: Sequence[Any]) -> Any:
    """Return what `sources_of_layer` calls `name`, of its sources; of NumPy's arrays one of NumPy's.

    q, k, v `[D, heads, H]`; o `[N, H, D]`; gate, up `[D, F]`.
    """
    if name not in _FUSED:
        return matrices[0]
    if name == "o":
        return matrices[0].reshape(-1, matrices[0].shape[-1])
    flat = [matrix.reshape(matrix.shape[0], -1) for matrix in matrices]
    concatenate = np.concatenate if isinstance(flat[0], np.ndarray) else jnp.concatenate
    return concatenate(flat, axis=1)


def unfused(name: str, matrix: Array, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Array]]:
    """Undo `fused`: yield every source with its shape, of `shapes`."""
    if name not in _FUSED or name == "o":
        yield name, matrix.reshape(shapes[name])
        return
    first = 0
    for source in _FUSED[name]:
        columns = math.prod(shapes[source][1:])
        yield source, matrix[:, first : first + columns].reshape(shapes[source])
        first += columns
