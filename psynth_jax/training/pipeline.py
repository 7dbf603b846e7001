"""From planned batches to batches on the devices: Grain reads ahead, and its position is the state of the data.

Batch number i of a run is the same whoever reads it and whenever: resuming is a matter of one number.
"""

from __future__ import annotations

import bisect
import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

import grain

from psynth_jax.training.batch import Batch, BatchBuilder, Counts
from psynth_jax.training.plan import Plan, PlannedBatch, Shape

READ_THREADS, READ_AHEAD = 2, 4


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A batch as host arrays, their shape, which examples it has, and the tokens that it holds."""

    batch: Batch
    shape: Shape
    planned: PlannedBatch
    counts: Counts
    epoch: int


class BatchSource:
    """The batches of a run by number, for Grain: epoch after epoch of a plan."""

    def __init__(self, plan: Plan, builder: BatchBuilder, count: int):
        """Take `count` batches of a plan."""
        self.plan, self._builder, self._count = plan, builder, count
        self._epochs = {0: plan.batches(0)}
        self._ends = [len(self._epochs[0])]
        self._planning = threading.Lock()  # Grain reads from several threads

    def __len__(self) -> int:
        """How many batches the run has."""
        return self._count

    def __getitem__(self, index: int) -> Loaded:
        """Build a batch."""
        epoch, planned = self.planned(int(index))
        return Loaded(*self._builder.build(planned), planned, self._builder.counts(planned), epoch)

    def planned(self, index: int) -> tuple[int, PlannedBatch]:
        """Return the epoch of a batch, and its plan."""
        with self._planning:
            while self._ends[-1] <= index:
                self._ends.append(self._ends[-1] + len(self._epoch(len(self._ends))))
            epoch = bisect.bisect_right(self._ends, index)
            return epoch, self._epoch(epoch)[index - (self._ends[epoch - 1] if epoch else 0)]

    def _epoch(self, number: int) -> list[PlannedBatch]:
        known = self._epochs.get(number)
        if known is None:
            known = self.plan.batches(number)
            self._epochs = {key: value for key, value in self._epochs.items() if key >= number - 1} | {number: known}
        return known


class BatchIterator:
    """Goes through the batches of a run from where `state` says."""

    def __init__(self, source: BatchSource, state: Mapping[str, Any] | None = None):
        """Start at the beginning, or at a state that `state` returned."""
        options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
        self._iterator = iter(grain.MapDataset.source(source).to_iter_dataset(options))
        if state is not None:
            self._iterator.set_state(dict(state))

    def __next__(self) -> Loaded:
        """Return the next batch.  Raises `StopIteration` at the end of the run."""
        return next(self._iterator)

    def state(self) -> dict[str, Any]:
        """Return where it stands, as JSON values."""
        return dict(self._iterator.get_state())
