"""Compare several things in turn, A B A B ..., so that a machine whose speed drifts does not favour one of them."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax

CALLS = 20  # that an accelerator runs one behind the other

Name = TypeVar("Name")

_PROGRESS = logging.getLogger("psynth_jax.progress")  # how far it is, for whoever listens; commands show it


def in_turn(measures: Mapping[Name, Callable[[], float]], repeats: int) -> dict[Name, float]:
    """Run every measure once unmeasured, then `repeats` times in turn; return the median of the seconds each reports."""
    for name, measure in measures.items():
        _PROGRESS.info("compiling and running %s once", name)
        measure()
    seconds: dict[Name, list[float]] = {name: [] for name in measures}
    for number in range(1, repeats + 1):
        for name, measure in measures.items():
            _PROGRESS.info("measuring %s, run %d of %d", name, number, repeats)
            seconds[name].append(measure())
    return {name: statistics.median(values) for name, values in seconds.items()}


def per_call(call: Callable[[], object]) -> Callable[[], float]:
    """Return a measure: the seconds of one of several calls whose results are waited for together.

    On an accelerator the host takes about as long to launch a call as a small one takes; calls that wait for each other on
    the device hide that.  A CPU runs one call.
    """
    calls = 1 if jax.default_backend() == "cpu" else CALLS

    def measure() -> float:
        begin = time.perf_counter()
        jax.block_until_ready([call() for _ in range(calls)])
        return (time.perf_counter() - begin) / calls

    return measure


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """Return a measure: the wall-clock seconds of `function`, which must not return before its work is done."""

    def measure() -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    return measure
