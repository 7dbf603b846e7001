"""Meshes, and which axis letter lies on which mesh axis.

    axis     splits                                                                  letters
    data     questions, and with them their rows                                     B, R
    fsdp     the width of parameters and of activations                              D
    branch   rows of caches that are read: every device holds some branches          R
    tensor   heads, MLP, experts and vocabulary                                      N, K, E, F, V

Every mesh has all four axes, most of size 1.  Axis types are Auto: XLA partitions what is not cut by hand.  Knows no module
and no cache.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from psynth_jax.axes import Array, HostArray
from psynth_jax.devices import start_devices
from psynth_jax.errors import ConfigError

DATA, FSDP, BRANCH, TENSOR = MESH_AXES = ("data", "fsdp", "branch", "tensor")
ROW_AXES = (DATA, BRANCH)  # what rows of a cache that is read may be split over, outermost first

# Parameters: letter -> mesh axis, and whether a size that the axis does not divide is replicated instead of refused.
_PARAMETER_AXES = {
    "D": (FSDP, False),
    "N": (TENSOR, False),
    "F": (TENSOR, False),
    "K": (TENSOR, True),
    "V": (TENSOR, True),
    "E": (TENSOR, True),
}
_LETTER_NAMES = {"D": "model width", "N": "heads", "F": "MLP width"}


def make_mesh(axes: str | Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Build the mesh that `axes` describes, over all devices.

    Args:
      axes: "branch=2,tensor=2" or {"branch": 2, "tensor": 2}; axes that are not named have size 1.
      devices: None: all that JAX has, of all processes.

    Raises:
      ConfigError: an unknown or repeated axis, a size that is no positive number, or sizes that do not multiply to the
        number of devices.
    """
    sizes = mesh_sizes(axes)
    found = list(start_devices() if devices is None else devices)
    needed = math.prod(sizes.values())
    if needed != len(found):
        named = ",".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "of one device"
        raise ConfigError(
            f"mesh {named} has {needed} device{'s' if needed > 1 else ''}, but there {_are(len(found))}: "
            "the sizes must multiply to that"
        )
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES), devices=found)


def mesh_sizes(axes: str | Mapping[str, int]) -> dict[str, int]:
    """Return the size of each of the four axes.  Raises `ConfigError` as `make_mesh` does, without looking at devices."""
    pairs: list[tuple[str, Any]] = list(axes.items()) if isinstance(axes, Mapping) else _parsed(axes)
    sizes = dict.fromkeys(MESH_AXES, 1)
    seen = set()
    for name, size in pairs:
        if name not in sizes:
            raise ConfigError(f"a mesh has no axis {name!r}: choose from {', '.join(MESH_AXES)}")
        if name in seen:
            raise ConfigError(f"mesh axis {name} is given twice")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"mesh axis {name} is {size!r}; it must be a whole number of at least 1")
        seen.add(name)
        sizes[name] = size
    return sizes


def _parsed(text: object) -> list[tuple[str, int]]:
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"a mesh is written like branch=2,tensor=2; {text!r} is not")
    pairs = []
    for item in text.split(","):
        name, equals, size = (part.strip() for part in item.partition("="))
        if not equals or not re.fullmatch(r"\d{1,9}", size, re.ASCII):
            raise ConfigError(f"a mesh is written like branch=2,tensor=2; {item.strip()!r} is no axis with its size")
        pairs.append((name, int(size)))
    return pairs


def _are(count: int) -> str:
    return f"are {count}" if count != 1 else "is 1"


def check_fits(mesh: Mesh, sizes: Mapping[str, int]) -> None:
    """Raise `ConfigError` naming every axis of the model that its mesh axis does not divide.

    KV heads and vocabulary are never refused: they are replicated where they do not divide.  Of experts and their width
    one has to divide.
    """
    by_expert = sizes.get("E", 1) % mesh.shape[TENSOR] == 0 and "E" in sizes
    wrong = [
        f"{axis}={mesh.shape[axis]} does not divide the {_LETTER_NAMES[letter]} {letter} = {sizes[letter]}"
        for letter, (axis, replicate) in _PARAMETER_AXES.items()
        if not replicate and letter in sizes and sizes[letter] % mesh.shape[axis] and not (letter == "F" and by_expert)
    ]
    if wrong:
        raise ConfigError("the mesh does not fit the model: " + "; ".join(wrong))


def parameter_spec(letters: str, sizes: Mapping[str, int], mesh: Mesh) -> P:
    """Return how a parameter is cut: `parameter_spec("L D N H", ...)` is `P(None, "fsdp", "tensor", None)`.

    Of two letters that lie on the same axis, E and F, the first one is cut that the axis divides.
    """
    cut: list[str | None] = []
    for letter in letters.split():
        axis = _axis_of(letter, sizes, mesh)
        cut.append(None if axis in cut else axis)
    return P(*cut)


def _axis_of(letter: str, sizes: Mapping[str, int], mesh: Mesh) -> str | None:
    axis, _ = _PARAMETER_AXES.get(letter, (None, False))
    return axis if axis is not None and sizes[letter] % mesh.shape[axis] == 0 else None


def parameter_shardings(letters: Mapping[str, str], sizes: Mapping[str, int], mesh: Mesh) -> dict[str, NamedSharding]:
    """Return name -> sharding of every parameter, from name -> letters."""
    return {name: NamedSharding(mesh, parameter_spec(axes, sizes, mesh)) for name, axes in letters.items()}


def kv_copies(kv_heads: int, mesh: Mesh) -> int:
    """Return how often every key/value head is cached, so that `tensor` divides the heads of a cache.

    A device needs the KV heads of its own query heads.  With K = 2 and tensor = 4 each of the two is cached twice, and every
    device holds one:  device 0: head 0,  1: head 0,  2: head 1,  3: head 1.
    """
    return math.lcm(kv_heads, mesh.shape[TENSOR]) // kv_heads


def constrain(x: Array, mesh: Mesh | None, *axes: str | tuple[str, ...] | None) -> Array:
    """Tell XLA how `x` is to be cut: a mesh axis, several or None per axis of x.  Without a mesh, x itself."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))


# Programs over several devices meet in collectives: all devices must be given them in one order, whoever calls.
_ORDER = threading.Lock()


def in_one_order(on_mesh: bool) -> contextlib.AbstractContextManager[object]:
    """Return what is held while a program is given to several devices; nothing for one device."""
    return _ORDER if on_mesh else contextlib.nullcontext()


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, P())


def shards(mesh: Mesh | None, axes: Sequence[str]) -> int:
    """Return into how many pieces some mesh axes cut an array: 1 without a mesh."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)


def block_index(mesh: Mesh, axes: Sequence[str]) -> Array:
    """Return, inside of a shard_map, which piece this device holds of what is cut over `axes`, outermost first."""
    index = jnp.int32(0)
    for axis in axes:
        index = index * mesh.shape[axis] + jax.lax.axis_index(axis).astype(jnp.int32)
    return index


def put(x: HostArray, sharding: NamedSharding) -> jax.Array:
    """Move a host array that every process has to its devices; each process gives only the pieces of its own devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    return from_pieces(x.shape, sharding, lambda index: x[index])


def moved(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Return an array with another sharding; between processes it goes over the hosts, which must have all of it."""
    return jax.device_put(x, sharding) if sharding.is_fully_addressable else put(np.asarray(x), sharding)


def from_pieces(
    shape: tuple[int, ...], sharding: NamedSharding, read: Callable[[tuple[slice, ...]], HostArray]
) -> jax.Array:
    """Build an array from its pieces, reading each of this process's pieces once."""
    known: dict[tuple[tuple[int, int, int], ...], HostArray] = {}

    def piece(index: tuple[slice, ...] | None) -> HostArray:
        assert index is not None
        key = tuple(part.indices(size) for part, size in zip(index, shape, strict=True))
        if key not in known:
            known[key] = read(tuple(slice(first, stop) for first, stop, _ in key))
        return known[key]

    return jax.make_array_from_callback(shape, sharding, piece)


def pick(x: jax.Array, places: Sequence[HostArray]) -> HostArray:
    """Return the elements of a sharded array at some places (one index array per axis), without gathering the array."""
    sharding = x.sharding
    assert isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh)
    mesh, spec = sharding.mesh, (*sharding.spec, *(None for _ in range(x.ndim - len(sharding.spec))))
    cuts = [() if axes is None else (axes,) if isinstance(axes, str) else tuple(axes) for axes in spec]

    def picked(piece: Array) -> Array:
        held = jnp.bool_(True)
        local = []
        for place, size, axes in zip(places, piece.shape, cuts, strict=True):
            here = jnp.asarray(place, jnp.int32) - block_index(mesh, axes) * size
            held &= (here >= 0) & (here < size)
            local.append(jnp.clip(here, 0, size - 1))
        found = jnp.where(held, piece[tuple(local)].astype(jnp.float32), 0.0)
        over = tuple(axis for axes in cuts for axis in axes)
        return jax.lax.psum(found, over) if over else found

    gather = jax.shard_map(picked, mesh=mesh, in_specs=sharding.spec, out_specs=P(), check_vma=False)
    return np.asarray(jax.jit(gather)(x))
