"""Find the fastest tiling of one attention call, and keep it in the user's table.

All candidates compute the same numbers in another order: one whose output is not that of the heuristic is not taken.  They
are measured in turn; then the fastest one and the heuristic anew, just the two of them, because the lowest of many medians
is low by luck as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.bench.kernel import attention_call
from psynth_jax.bench.timing import in_turn, per_call
from psynth_jax.bench.tuning_file import install_tilings, record
from psynth_jax.errors import InputError
from psynth_jax.foreign import first_line
from psynth_jax.ops.branch_attention import Implementation, tuned
from psynth_jax.ops.branch_attention.cases import Case
from psynth_jax.ops.branch_attention.tuned import Asked, Table

# How much faster a candidate must be.  Medians of a few runs on a machine that does other things too differ by some percent
# from themselves; below that a table would hold noise, and its entries stand for calls that are only like the measured one.
MARGIN = 0.05
AGAIN = 3  # times as many runs decide between the last two: there are few of them, and all depends on it
TOLERANCE = 0.03  # of outputs, relative to the largest: what rounding to bfloat16 does, in inputs of products or outputs
EXACT_TOLERANCE = 1e-4  # the same on a CPU in float32, where products are exact


def tune(case: Case, dtype: str, cache_dtype: str, implementation: Implementation, repeats: int) -> dict[str, Any]:
    """Measure the candidate tilings of a case; return what `psynth bench kernel --tune --json` prints, less the device.

    Where a candidate wins, the user's table has it from then on, and calls of this process use it; where the heuristic wins,
    the table's entry for such calls goes.

    Raises:
      InputError: a case as `kernel` does not take it, or an implementation without tilings.
      UserError: the table cannot be read or written.
    """
    call, operands = attention_call(case, dtype, cache_dtype, implementation, repeats)
    asked = tuned.asked(lambda: jax.eval_shape(call, *operands))
    if not asked:
        raise InputError(f"implementation {implementation} has no tilings to choose from: nothing is tuned")
    question, kind = asked[0], tuned.local_kind()
    tried = _Tried(call, operands, question, Table(kind, {}), _tolerance(dtype))
    seconds = in_turn({tiles: per_call(run) for tiles, run in tried.runs.items()}, repeats)
    fastest = min(seconds, key=lambda tiles: seconds[tiles])
    last = in_turn({tiles: per_call(tried.runs[tiles]) for tiles in {question.heuristic, fastest}}, AGAIN * repeats)
    heuristic_seconds = last[question.heuristic]
    won = last[fastest] <= (1 - MARGIN) * heuristic_seconds
    best = fastest if won else question.heuristic
    entry = {
        "tiles": dataclasses.asdict(tried.entries[best]),
        "case": case.name,
        "heuristic_seconds": heuristic_seconds,
        "seconds": last[best],
        "repeats": repeats,
        "jax": jax.__version__,
    }
    file = record(kind, {question.key: entry if won else None})
    install_tilings()
    return {
        "case": case.name,
        "rows": case.rows,
        "cache_dtype": cache_dtype,
        "implementation": implementation,
        "key": str(question.key),
        "candidates": [
            {"tiles": dataclasses.asdict(tiles), "heuristic": tiles == question.heuristic, "seconds": seconds[tiles]}
            for tiles in seconds
        ] + [{"tiles": dataclasses.asdict(tiles), "error": error} for tiles, error in tried.errors.items()],
        "heuristic_tiles": dataclasses.asdict(question.heuristic),
        "heuristic_seconds": heuristic_seconds,
        "best_tiles": dataclasses.asdict(best),
        "best_seconds": last[best],
        "ratio": heuristic_seconds / last[best],
        "won": won,
        "file": str(file),
        "repeats": repeats,
    }  # fmt: skip


class _Tried:
    """Compiled candidates, by what the call makes of them, the heuristic first.

    entries: what stands for them in a table.  errors: why others are not among them.
    """

    def __init__(self, call: Callable[..., jax.Array], operands: Any, question: Asked, nothing: Table, tolerance: float):
        self.runs: dict[Any, Callable[[], jax.Array]] = {}
        self.entries: dict[Any, Any] = {question.heuristic: question.heuristic}
        self.errors: dict[Any, str] = {}
        for tiling in tuned.candidates(question.key, question.heuristic):
            taken = question.take(tiling)
            if taken is not None:
                self.entries.setdefault(taken, tiling)
        refusals, expected = _refusals(), None
        for tiles, tiling in self.entries.items():
            table = nothing if tiles == question.heuristic else Table(nothing.device_kind, {question.key: tiling})
            try:
                run = _compiled(call, operands, table)
                found = np.asarray(run(), np.float32)
            except refusals as error:
                if expected is None:
                    raise
                self.errors[tiles] = first_line(error)
                continue
            expected = found if expected is None else expected
            difference = float(np.abs(found - expected).max() / np.abs(expected).max())
            if difference <= tolerance:
                self.runs[tiles] = run
            else:
                self.errors[tiles] = f"the output differs by {difference:.2g} of its largest number"


def _refusals() -> tuple[type[Exception], ...]:
    """Return what compilers raise for tiles that they do not take: XLA, Mosaic, and Pallas before it hands them over."""
    from jax.experimental.pallas.tpu import LoweringException  # takes a while to import

    return jax.errors.JaxRuntimeError, LoweringException, NotImplementedError, ValueError


def _compiled(call: Callable[..., jax.Array], operands: Any, table: Table) -> Callable[[], jax.Array]:
    with tuned.using(table), _kept_in_memory_only():
        compiled = jax.jit(call).lower(*operands).compile()
    return lambda: compiled(*operands)


@contextlib.contextmanager
def _kept_in_memory_only() -> Iterator[None]:
    """Write no program to the folder of compiled ones: most candidates are never compiled again."""
    least = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, least)
    jax.config.update(least, 1e9)
    try:
        yield
    finally:
        jax.config.update(least, before)


def _tolerance(dtype: str) -> float:
    exact = jax.default_backend() == "cpu" and jnp.dtype(dtype) == jnp.float32
    return EXACT_TOLERANCE if exact else TOLERANCE
