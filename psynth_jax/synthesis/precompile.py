"""Compile what requests need before they come, and show how far it is."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator

from psynth_jax.buckets import Buckets
from psynth_jax.engine.sequences import BASE
from psynth_jax.engine.step_input import Layout
from psynth_jax.sharding import DATA, ROW_AXES
from psynth_jax.synthesis.runner import Runner

Say = Callable[[str], None]


def precompile(runner: Runner, max_branches: int, max_batch: int, say: Say | None) -> float:
    """Compile the steps of up to `max_batch` rows that read up to `max_branches` branches; return the seconds.

    say: told of each program; None: a progress bar on stderr, where that is a terminal.
    Raises what goes wrong, `MemoryLimitError` for a program that the device has not enough memory
    for.
    """
    begin = time.perf_counter()
    batches, buckets = runner.scheduler.batches, runner.machine.buckets
    widest = buckets.branches_of(max_branches + 1)  # the sink is read as a branch
    layouts = []
    smaller = [size for size in buckets.branches if size < widest]
    for branches in (*smaller, widest):
        layouts.append(Layout(branches, buckets.runs_of(branches, 1)))
    forms: list[tuple[str, ...]] = [()] if runner.mesh is None else [ROW_AXES, (DATA,)]
    futures = []
    for row_axes, layout in itertools.product(forms, layouts):
        conditionings = [runner.conditioning]
        if runner.mesh is not None and row_axes == ROW_AXES and runner.conditioning is not BASE:
            conditionings.append(BASE)  # workers run the base model alone
        for (rows, tokens), conditioning in itertools.product(_sizes(buckets, max_batch), conditionings):
            call = batches.shapes(conditioning, rows, tokens, layout, row_axes)
            futures.append(runner.programs.begin(call))
    with _telling(len(futures), say) as tell:
        for number, future in enumerate(concurrent.futures.as_completed(futures), start=1):
            future.result()
            tell(f"compiled {number} of {len(futures)} programs")
    return time.perf_counter() - begin


def _sizes(buckets: Buckets, max_batch: int) -> list[tuple[int, int]]:
    """Return (rows, tokens) of one part of a mesh; decode steps up to the first that takes `max_batch` rows."""
    found = list(buckets.prefill)
    for rows in buckets.decode:
        found.append((rows, 1))
        if rows >= max_batch:
            break
    return found


@contextlib.contextmanager
def _telling(count: int, say: Say | None) -> Iterator[Say]:
    if say is not None or not sys.stderr.isatty():
        yield say or (lambda text: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=count)
        yield lambda text: bar.advance(task)
