"""The base model as conversions see it: config, name, fingerprint and rows of its tables, loaded or still on disk."""

from __future__ import annotations

from typing import Protocol

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig
from psynth_jax.identity import Identity


class Base(Protocol):
    """A `Model` on its devices, or a `ModelStream` that has been opened."""

    @property
    def config(self) -> DecoderConfig:
        """What it computes."""
        ...

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    @property
    def identity(self) -> Identity:
        """What tells it from other models, and which noted digests are its own."""
        ...

    @property
    def fingerprint(self) -> str:
        """The digest of its stored weights, which files note."""
        ...

    def rows(self, table: str, first: int, stop: int) -> HostArray:
        """Return rows `first` to `stop` of "embedding" or "head", `[rows, D]`, in the dtype that it is loaded in."""
        ...
