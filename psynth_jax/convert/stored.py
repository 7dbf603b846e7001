"""Parameters of ours that a checkpoint still holds: read piece by piece, each number looked at, samples noted on the way."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig
from psynth_jax.convert.finite import refuse_not_finite, refuse_overflow
from psynth_jax.convert.rules import Rule, TensorSource, axis_sizes, widest
from psynth_jax.identity import Samples


@dataclasses.dataclass(frozen=True)
class StoredParameter:
    """One parameter of ours as a checkpoint holds it.  Reads nothing until `read` is called.

    dtype None: as it is stored.
    """

    rule: Rule
    config: DecoderConfig
    source: TensorSource
    dtype: np.dtype | None

    @property
    def name(self) -> str:
        """Our flat name."""
        return self.rule.ours

    @property
    def shape(self) -> tuple[int, ...]:
        """Our shape, the layer axis included."""
        return self.rule.our_shape(self.config)

    def dtype_of(self, place: tuple[int, ...]) -> np.dtype:
        """Return the dtype in which a place of its stack is read."""
        names, depth = self.rule.their_names(self.config), len(self.rule.stacked(self.config))
        return self.dtype or self.source.dtype(names[(*place, 0)[:depth]])

    @functools.cached_property
    def samples(self) -> Samples:
        """The elements that the model's fingerprint covers, as far as they were read."""
        return Samples(self.shape)

    def read(self, index: tuple[slice, ...] | None = None) -> HostArray:
        """Read the parameter, or the piece `index` of it and nothing else, one tensor of the checkpoint at a time.

        Raises `CheckpointError` for a tensor with NaN or infinities, or with values that the dtype cannot hold.
        """
        rule, sizes = self.rule, axis_sizes(self.config)
        depth = len(rule.stacked(self.config))
        parts = index or tuple(slice(None) for _ in self.shape)
        ranges = [range(*part.indices(size)) for part, size in zip(parts, self.shape, strict=True)]
        tensor_index = () if index is None else rule.form.their_index(parts[depth:], sizes)
        sizes = rule.form.piece_sizes(parts[depth:], sizes)
        begin = tuple(part.start for part in ranges[depth:])
        every = rule.their_names(self.config)
        names = {}
        for at in np.ndindex(*map(len, ranges[:depth])):
            place = tuple(stacked[i] for stacked, i in zip(ranges, at, strict=False))
            names[at] = place, every[place]
        dtype = self.dtype or widest(self.source.dtype(name) for _, name in names.values())
        if not depth and self.source.dtype(every[()]) == dtype:  # the largest tensors, tables, need not be held twice
            return self._read_tensor(every[()], (), tensor_index, begin, sizes)
        stack = np.empty([len(r) for r in ranges], dtype)
        for at, (place, name) in names.items():
            values = self._read_tensor(name, place, tensor_index, begin, sizes)
            with np.errstate(over="ignore"):  # looked at just below, with the tensor's name
                stack[at] = values
            if values.dtype != dtype:
                refuse_overflow(self.source.path, name, stack[at])
        return stack

    def _read_tensor(
        self,
        name: str,
        place: tuple[int, ...],
        index: tuple[slice, ...],
        begin: tuple[int, ...],
        sizes: Mapping[str, int],
    ) -> HostArray:
        """Read one tensor, or the piece `index` of it, in our layout: the piece of `place` that begins at `begin`."""
        tensor = self.source.read(name, index)
        refuse_not_finite(self.source.path, name, tensor)
        values = self.rule.form.to_ours(tensor, sizes)
        if not self.samples.known.all():
            self.samples.note((*place, *begin), values[(None,) * len(place)])
        return values

    def complete_samples(self) -> None:
        """Read the sampled elements that no `read` has come across: single rows of every tensor.

        Raises `CheckpointError` for one that is not finite.
        """
        missing = np.flatnonzero(~self.samples.known)
        places, sizes = self.samples.places(missing), axis_sizes(self.config)
        names = self.rule.their_names(self.config)
        depth = len(self.rule.stacked(self.config))
        of_tensor = np.zeros(len(missing), np.int64)  # which tensor of the stack each element is in
        if depth:
            of_tensor = np.ravel_multi_index(places[:depth], self.shape[:depth])
        for number in np.unique(of_tensor):
            here = np.flatnonzero(of_tensor == number)
            place = tuple(int(axis[here[0]]) for axis in places[:depth])
            wanted = self.rule.form.their_places([axis[here] for axis in places[depth:]], sizes)
            found = picked(self.source, names[place], wanted)
            refuse_not_finite(self.source.path, names[place], found)
            self.samples.set(missing[here], found)


def picked(source: TensorSource, name: str, places: tuple[HostArray, ...]) -> HostArray:
    """Return the elements of a tensor at some places, an index array for each axis."""
    pick = getattr(source, "pick", None)
    if pick is not None:
        return np.asarray(pick(name, places))
    if len(places) == 1:
        return source.read(name)[places]
    # Whole rows: what is quantised together lies within one.
    found = np.empty(len(places[0]), source.dtype(name))
    rows = np.stack(places[:-1], axis=1)
    for row in np.unique(rows, axis=0):
        here = np.flatnonzero((rows == row).all(axis=1))
        index = (*(slice(int(at), int(at) + 1) for at in row), slice(None))
        found[here] = source.read(name, index).reshape(-1)[places[-1][here]]
    return found


def stored_parameters(
    rules: Sequence[Rule], config: DecoderConfig, source: TensorSource, dtype: np.dtype | None
) -> list[StoredParameter]:
    """List the parameters of a checkpoint whose shapes have been checked with `find_problems`; none is read yet.

    A caller that moves each to its devices before reading the next never holds the whole model on the host.
    """
    return [StoredParameter(rule, config, source, dtype) for rule in rules]
