"""A model whose parameters are still on disk: checked, described, and read one piece at a time."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig
from psynth_jax.convert.finite import refuse_overflow
from psynth_jax.convert.rules import Rule, axis_sizes
from psynth_jax.identity import Identity, Samples, identify
from psynth_jax.tokenizer import Tokenizer

GROUP_BYTES = 512 << 20  # of tensors that are written together; writers hold them twice


class Stored(Protocol):
    """One parameter of a checkpoint, or of a model that is drawn.  Nothing is read before `read`."""

    @property
    def name(self) -> str:
        """Our flat name."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Our shape, the layer axis included."""
        ...

    @property
    def dtype(self) -> np.dtype | None:
        """The dtype that it is read in; None: that in which each tensor is stored."""
        ...

    def dtype_of(self, place: tuple[int, ...]) -> np.dtype:
        """Return the dtype in which a place of its stack (layer, or layer and expert) is read."""
        ...

    def read(self, index: tuple[slice, ...] | None = None) -> HostArray:
        """Read it, or the piece `index` of it."""
        ...

    @property
    def samples(self) -> Samples:
        """The elements that the model's fingerprint covers, as far as they were read."""
        ...

    def complete_samples(self) -> None:
        """Read the sampled elements that no `read` has come across, and little else."""
        ...


@dataclasses.dataclass(frozen=True)
class ModelStream:
    """A model whose config, tokenizer and tensor names have been checked, and whose parameters are still to be read.

    Each parameter can move to its devices before the next is read.  name is the source as the user gave it; tokenizer is
    None for a directory without one; stop_ids has every end token of the generation config, and the tokenizer's; files is
    the directory with config.json and tokenizer, for a source that is one; stored: what the numbers are stored as.
    """

    config: DecoderConfig
    parameters: Sequence[Stored]
    tokenizer: Tokenizer | None
    stop_ids: frozenset[int]
    name: str
    files: Path | None = None
    stored: str = "float32"

    @functools.cached_property
    def identity(self) -> Identity:
        """What tells this model from others, from the numbers that are stored, whatever dtype they are read in.

        What has not been read by then is looked up: a few elements of every tensor.
        """
        for parameter in self.parameters:
            parameter.complete_samples()
        return identify(self.config, {p.name: p.samples.values for p in self.parameters}, self.stored)

    @property
    def fingerprint(self) -> str:
        """The digest that adapters, branches and checkpoints note; see `Identity`."""
        return self.identity.fingerprint

    def written_identity(self) -> Identity:
        """Return the identity of what is written from here: another one where the dtype rounds the numbers."""
        identity = self.identity
        if all(parameter.dtype is None for parameter in self.parameters):
            return identity
        rounded = {p.name: p.samples.values.astype(p.dtype or np.float32) for p in self.parameters}
        return identify(self.config, rounded, identity.stored)

    def rows(self, table: str, first: int, stop: int) -> HostArray:
        """Return rows `first` to `stop` of "embedding" or "head", `[rows, D]`."""
        stored = next(stored for stored in self.parameters if stored.name == table)
        return stored.read((slice(first, stop), slice(0, stored.shape[1])))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on its way from one format into another: how it will be called there, and what gives it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], HostArray]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


# Given our name of a parameter, a place of its stack and its values there, returns the values to write.
Change = Callable[[str, tuple[int, ...], HostArray], HostArray]


def tensors_of(
    stream: ModelStream, rules: Sequence[Rule], config: DecoderConfig, change: Change | None = None
) -> list[Tensor]:
    """List the tensors that a format has for a model; config may differ from the model's in what `change` cuts off."""
    stored = {parameter.name: parameter for parameter in stream.parameters}
    sizes, found = axis_sizes(config), []
    for rule in rules:
        parameter = stored[rule.ours]
        shape = rule.form.their_shape(sizes)
        for place, name in rule.their_names(config).items():
            read = functools.partial(_read, parameter, rule, place, sizes, change)
            found.append(Tensor(name, shape, parameter.dtype_of(place), read))
    return found


def _read(
    parameter: Stored, rule: Rule, place: tuple[int, ...], sizes: Mapping[str, int], change: Change | None
) -> HostArray:
    rest = parameter.shape[len(place) :]
    index = (*(slice(at, at + 1) for at in place), *(slice(0, size) for size in rest))
    values = parameter.read(index).reshape(rest)
    if change is not None:
        values = change(rule.ours, place, values)
        refuse_overflow("the merged model", rule.ours, values)
    return rule.form.to_theirs(values, sizes)


def in_groups(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Cut a list into groups of at most `GROUP_BYTES`, or of one tensor, which may be in memory at once."""
    groups: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if groups[-1] and sum(other.size for other in groups[-1]) + tensor.size > GROUP_BYTES:
            groups.append([])
        groups[-1].append(tensor)
    return groups
