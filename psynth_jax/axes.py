"""One alphabet for every array of the library: einsum strings, shape comments and parameter tables use these letters.

    B batch of questions      T query tokens of one call   D model width         H head width
    W branches (workers)      S cache slots                F MLP width           A adapter rank
    R cache rows              L layers                     V vocabulary          C runs of one query row
    N query heads             K key/value heads            E experts             G = N / K query heads per key/value head

The annotations below say which letters an array carries.  They are names for readers and tools, never checked at run
time inside a pytree: an array check in a dataclass would break `jax.tree.map`, which puts other things in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import jax
import numpy as np

# A NumPy array is welcome wherever a compiled function takes an array, hence the Any.
Array: TypeAlias = jax.Array | Any
HostArray: TypeAlias = np.ndarray

Tokens: TypeAlias = Annotated[Array, "B T int32"]
PerRow: TypeAlias = Annotated[Array, "B"]
Hidden: TypeAlias = Annotated[Array, "B T D"]
Queries: TypeAlias = Annotated[Array, "B T N H"]
KeysOrValues: TypeAlias = Annotated[Array, "B T K H"]
MapperScalars: TypeAlias = Annotated[Array, "L B W 4"]


def letters_to_shape(letters: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """Turn axis letters into a shape: `letters_to_shape("L D N H", {"L": 2, ...})`."""
    return tuple(sizes[letter] for letter in letters.split())


def pad_rows(rows: Sequence[Sequence[int]], width: int, fill: int = 0) -> HostArray:
    """Right-pad ragged integer rows to `[len(rows), width]` int32.  Rows must not be longer than `width`."""
    padded = np.full((len(rows), width), fill, np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
