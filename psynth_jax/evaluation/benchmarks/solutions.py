"""What the canonical solution returns, which is what a candidate must return.

    inputs    0   1   2   3   4
    outputs   a   b   !   c   d      ! its value is too large to be reported, or ended the run:
    cases     a   b       c   d        nobody is asked for it

Every other input counts.  The solution runs without any candidate beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from psynth_jax.evaluation.benchmarks import trials

_PATIENCE = 4  # a candidate may be so many times as slow as the canonical solution
_MOST_LOST = 10  # inputs without an output, before a solution counts as broken
_TOO_MUCH = ("TooLarge", "MemoryError")


@dataclasses.dataclass(frozen=True)
class Case:
    """An input that counts.

    arguments: as JSON values.  output: what the solution returned.  is_base: whether the original
    benchmark has this input.
    """

    arguments: Sequence[Any]
    output: trials.Output
    is_base: bool


def solved(
    run: trials.Run,
    solution: str,
    entry_point: str,
    given: Sequence[Sequence[Any]],
    times: trials.Times,
) -> Mapping[int, trials.Output]:
    """Return the outputs of a solution by the numbers of their inputs.

    A run that an input has ended is taken up behind that input.  Nothing is returned where the
    solution raises an exception, or where too many inputs have no output.
    """
    found: dict[int, trials.Output] = {}
    generous = trials.Times(times.call * _PATIENCE, times.all * _PATIENCE)
    start, lost = 0, 0
    while start < len(given) and lost <= _MOST_LOST:
        outputs = trials.try_program(run, solution, entry_point, given[start:], generous)
        for output in outputs:
            if output is None:
                break
            if output.error in _TOO_MUCH:
                lost += 1
            elif output.error:
                return {}
            else:
                found[start] = output
            start += 1
        else:
            break
        start, lost = start + 1, lost + 1
    return found if lost <= _MOST_LOST else {}


def allowed(times: trials.Times, seconds: Sequence[float]) -> trials.Times:
    """Return the times of a candidate: more than usual where the solution itself is slow."""
    call = max(times.call, _PATIENCE * max(seconds))
    return trials.Times(call, max(times.all, _PATIENCE * sum(seconds), call))
