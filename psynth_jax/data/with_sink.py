"""Examples that have the attention sink among their branches: see `adapter.sink`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.data.example import BranchTokens, Example, ExampleSource, Lengths


class WithSink:
    """Examples whose first branch is the sink, and whose other branches stand after it."""

    def __init__(self, source: ExampleSource, sink: Sequence[int]):
        self.task, self.sink, self._source = source.task, tuple(sink), source
        count, columns = len(self.sink), Lengths(*np.asarray(source.lengths).T)
        self.lengths: HostArray = np.stack(
            columns._replace(
                branches=columns.branches + 1,
                prefilled=columns.prefilled + count,
                kept=np.maximum(columns.kept, count),
                all_prefilled=columns.all_prefilled + count * (columns.branches + 1),
            ),
            axis=1,
        )

    def __len__(self) -> int:
        """How many there are."""
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """Return one of them."""
        example = self._source[index]
        sink = BranchTokens(np.zeros(0, np.int32), np.asarray(self.sink, np.int32))
        after = (BranchTokens(np.concatenate([sink.kept, branch.prefix]), branch.kept) for branch in example.branches)
        return dataclasses.replace(example, branches=(sink, *after))
