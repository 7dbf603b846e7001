"""A pool over several processes: each keeps the same books, because nothing that differs between them decides anything.

    process 0    reserve  reserve  reserve: no room -> says what it dropped -.   reserve again
    process 1    reserve  reserve  reserve: no room -----------------------> free that, reserve again

All make the same calls in the same order, so all run out of room at the same call.  Garbage collectors run when they like:
a lease that process 0 has dropped is free for all from the next such call on, one that another has dropped is not.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from psynth_jax.axes import Array, HostArray
from psynth_jax.errors import InputError
from psynth_jax.sharding import from_pieces, replicated

AT_ONCE = 256  # numbers that the first process says in one message


def smallest(mesh: Mesh, number: int) -> int:
    """Return the smallest of the numbers that the processes of a mesh have.  All of them call it."""
    rows = _from_all(mesh, np.array([number], np.int32))
    return int(_reduced(mesh, jnp.min)(rows)[0])


def said_by_first(mesh: Mesh, numbers: Sequence[int]) -> list[int]:
    """Return the numbers of the process that has the mesh's first device, whatever the others have.  All call it."""
    first = mesh.devices.flat[0].process_index == jax.process_index()
    left, heard = list(numbers) if first else [], []
    while True:
        message = np.zeros(1 + AT_ONCE, np.int32)
        now, left = left[:AT_ONCE], left[AT_ONCE:]
        message[0] = len(now)
        message[1 : 1 + len(now)] = now
        # The others' rows are zeros, so the largest is the first process's.
        said = np.asarray(_reduced(mesh, jnp.max)(_from_all(mesh, message)))
        heard += said[1 : 1 + said[0]].tolist()
        if said[0] < AT_ONCE:
            return heard


class OneThread:
    """Refuses all threads but the first that calls: their order would differ between processes."""

    def __init__(self) -> None:
        """Wait for the first."""
        self._ident: int | None = None

    def check(self) -> None:
        """Raise `InputError` naming the thread that calls, if it is another one."""
        if self._ident is None:
            self._ident = threading.get_ident()
        if threading.get_ident() != self._ident:
            name = threading.current_thread().name
            raise InputError(
                f"thread {name} calls a model that lies on several processes: all of these must make the same calls in the "
                "same order, so only the thread that was first may call"
            )


def _from_all(mesh: Mesh, row: HostArray) -> Array:
    """Return `[devices, N]` with this process's row `[N]` on its own devices."""
    cut = NamedSharding(mesh, P(mesh.axis_names))
    return from_pieces((mesh.size, len(row)), cut, lambda index: row[None])


@functools.cache
def _reduced(mesh: Mesh, reduce: Callable[..., Array]) -> Callable[[Array], Array]:
    return jax.jit(functools.partial(reduce, axis=0), out_shardings=replicated(mesh))
