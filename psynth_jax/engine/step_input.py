"""What the host tells a step, as one array: a row of int32 for every row of the batch.

    row   [ one number each | seed | reads: shift, span, valid [W] | runs [5, C] | tokens [T] | slots [T] ]

One array is one transfer.  Floats travel as their bits.  A sequence keeps its row between steps, since most of it does not
change while it decodes; `StepInput` is what a compiled step makes of all rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.axes import Array, HostArray

INTEGERS = ("before", "block", "count", "position", "drawn", "top_k", "alternatives", "vocabulary", "runs_used")
FLOATS = ("temperature", "top_p", "min_p", "scale")
RUN_FIELDS = ("row", "first", "length", "branch", "position")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepInput:
    """Arrays `[B]` where nothing else is said; int32, or float32 for temperature, top_p, min_p and scale.

    tokens `[B, T]`: new tokens, the first `count` of a row are real.
    before: the row of the step before this one in which the first new token was sampled; -1: it is among `tokens`.
    position: of the first new token.  block, slots `[B, T]`: where its keys and values go; beyond the pool: nowhere.
    seed `[B, 3]` uint32, drawn: of the random key; see `sampling.RowSampling`.  drawn counts the tokens sampled before.
    temperature, top_p, min_p, top_k: see `SamplingOptions`.  vocabulary: tokens that may be
    sampled.
    alternatives: how many of the most likely tokens are told.
    scale: of LoRA and mapper, 0 for a worker.
    shift, span, valid `[B, W]`: of the branches that are read.
    runs `[5, B, C]`: row, first, length, branch and position of every run; runs_used: how many of them there are.
    """

    tokens: Array
    slots: Array
    before: Array
    block: Array
    count: Array
    position: Array
    drawn: Array
    top_k: Array
    alternatives: Array
    vocabulary: Array
    runs_used: Array
    temperature: Array
    top_p: Array
    min_p: Array
    scale: Array
    seed: Array
    shift: Array
    span: Array
    valid: Array
    runs: Array


class Layout(NamedTuple):
    """Columns of a row for W branches and C runs, tokens and slots not counted."""

    branches: int
    runs: int

    @property
    def columns(self) -> dict[str, slice]:
        """Name -> columns."""
        return _columns(self)

    @property
    def width(self) -> int:
        """How many columns there are."""
        return self.columns["runs"].stop

    def idle_row(self) -> HostArray:
        """Return a row without tokens, which reads nothing."""
        row = np.zeros(self.width, np.int32)
        row[self.columns["before"]] = -1
        row[self.columns["top_p"]] = as_bits(1.0)
        return row


@functools.cache
def _columns(layout: Layout) -> dict[str, slice]:
    widths = dict.fromkeys((*INTEGERS, *FLOATS), 1)
    widths |= {"seed": 3, "shift": layout.branches, "span": layout.branches, "valid": layout.branches}
    widths |= {"runs": len(RUN_FIELDS) * layout.runs}
    columns, first = {}, 0
    for name, width in widths.items():
        columns[name] = slice(first, first + width)
        first += width
    return columns


def as_bits(number: float) -> np.int32:
    """Return the bits of a float32."""
    return np.float32(number).view(np.int32)


def packed(rows: Sequence[HostArray], tokens: HostArray, slots: HostArray) -> HostArray:
    """Return the array of a step, `[B, width + 2 T]`: rows of a layout, and tokens and slots `[B, T]` behind them."""
    return np.concatenate([np.stack(rows), tokens, slots], axis=1)


def unpacked(array: Array, layout: Layout) -> StepInput:
    """Return what `packed` was given, inside a compiled step."""
    tokens = (array.shape[1] - layout.width) // 2
    found: dict[str, Any] = {name: array[:, columns] for name, columns in layout.columns.items()}
    for name in INTEGERS:
        found[name] = found[name][:, 0]
    for name in FLOATS:
        found[name] = jax.lax.bitcast_convert_type(found[name][:, 0], jnp.float32)
    found["valid"] = found["valid"] != 0
    found["seed"] = jax.lax.bitcast_convert_type(found["seed"], jnp.uint32)
    runs = found["runs"].reshape(-1, len(RUN_FIELDS), layout.runs)
    found["runs"] = jnp.swapaxes(runs, 0, 1)  # 5 B C
    behind = array[:, layout.width :]
    return StepInput(tokens=behind[:, :tokens], slots=behind[:, tokens:], **found)
