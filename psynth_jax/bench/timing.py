"""Compare several things in turn, A B A B ..., so that a machine whose speed drifts does not favour one of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Name = TypeVar("Name")


def in_turn(measures: Mapping[Name, Callable[[], float]], repeats: int) -> dict[Name, float]:
    """Run every measure once unmeasured, then `repeats` times in turn; return the median of the seconds each reports."""
    for measure in measures.values():
        measure()
    seconds: dict[Name, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            seconds[name].append(measure())
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """Return a measure: the wall-clock seconds of `function`, which must not return before its work is done."""

    def measure() -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    return measure
