"""A table of tilings that were measured.

A *tiling* says how a kernel cuts its work (`tuning.Tiles` and the like); a *key* says of which calls: the kernel, and the
sizes that its heuristic looks at, those that differ from call to call rounded up to a power of two.

Knows no kernel, no file, and not what a table is used for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class Key:
    """Which calls a tiling is for: the kernel's name, and sizes by name, in a fixed order."""

    kernel: str
    sizes: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, kernel: str, **sizes: int) -> Self:
        """Make a key of sizes in the order in which they are given."""
        return cls(kernel, tuple(sizes.items()))

    def __str__(self) -> str:
        return " ".join([self.kernel, *(f"{name}={size}" for name, size in self.sizes)])


class Table:
    """Tilings by key, of one kind of device (as JAX names it).  It never changes, and equals a table of the same content."""

    def __init__(self, device_kind: str, tilings: Mapping[Key, Any]):
        self.device_kind = device_kind
        self.tilings = dict(tilings)
        self._content = device_kind, frozenset(self.tilings.items())
        self._hash = hash(self._content)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Table) and self._content == other._content)

    def __hash__(self) -> int:
        return self._hash


def bucket(size: int) -> int:
    """Round up to a power of two."""
    return 1 << max(size - 1, 0).bit_length()
