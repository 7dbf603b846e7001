"""One attention call of a real model's shape: its time, against what the device's memory and matrix units could do.

    floor   max(bytes of keys and values / measured copy bandwidth, flops / measured matmul rate)

Both rates are measured in the same run, in turn with the call itself.  The error is that of the numbers, against the oracle
in float32 on the same (unrounded) keys and values; it is left out where the oracle would need too much memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psynth_jax.bench import rates
from psynth_jax.bench.timing import in_turn, per_call
from psynth_jax.cache import packed_here
from psynth_jax.errors import InputError
from psynth_jax.ops.branch_attention import Implementation, branch_attention, check_runs_here
from psynth_jax.ops.branch_attention.cases import MODELS, Case, arguments

ORACLE_BYTES = 1 << 28  # of logits, or of gathered keys and values, that the oracle may need


def kernel(case: Case, dtype: str, cache_dtype: str, implementation: Implementation, repeats: int) -> dict[str, Any]:
    """Measure a case; return what `psynth bench kernel --json` prints, less the description of the device.

    Raises `InputError` for a model or sizes out of range.
    """
    function, operands = _attention_call(case, dtype, cache_dtype, implementation, repeats)
    call = jax.jit(function)
    seconds = in_turn(
        {
            "call": per_call(lambda: call(*operands)),
            "copy": rates.copy(),
            "matmul": rates.matmul(jnp.dtype(dtype)),
        },
        repeats,
    )
    bandwidth, rate = rates.bandwidth(seconds["copy"]), rates.matmul_rate(seconds["matmul"])
    read, flops = case.cache_bytes(jnp.dtype(cache_dtype).itemsize), case.flops()
    floor = max(read / bandwidth, flops / rate)
    found = {
        "case": case.name,
        "rows": case.rows,
        "cache_dtype": cache_dtype,
        "implementation": implementation,
        "seconds": seconds["call"],
        "cache_bytes": read,
        "bytes_per_s": read / seconds["call"],
        "copy_bytes_per_s": bandwidth,
        "flops": flops,
        "flops_per_s": flops / seconds["call"],
        "matmul_flops_per_s": rate,
        "floor_s": floor,
        "times_floor": seconds["call"] / floor,
        "repeats": repeats,
    }
    return found | _error(case, call(*operands))


def _attention_call(
    case: Case, dtype: str, cache_dtype: str, implementation: Implementation, repeats: int
) -> tuple[Callable[..., jax.Array], Any]:
    """Return the call of a case, and its operands on the device; raises as `kernel` does."""
    if case.model not in MODELS:
        raise InputError(f"no attention shape {case.model!r}: choose from {', '.join(MODELS)}")
    if min(case.tokens, case.branches, case.branch_tokens, case.rows, repeats) < 1:
        raise InputError("tokens, branches, branch tokens, rows and repeats must be at least 1")
    check_runs_here(implementation)
    drawn = arguments(case, jnp.dtype(dtype), cache_dtype, packed=packed_here(MODELS[case.model][2]))
    layer, scale = drawn[4:]

    def call(q: Any, k: Any, v: Any, context: Any) -> jax.Array:
        return branch_attention(q, k, v, context, layer, scale, implementation)

    return call, jax.device_put(drawn[:4])


def _error(case: Case, found: jax.Array) -> dict[str, float]:
    # The oracle gathers every branch's whole row for every segment.
    logits = 4 * case.rows * MODELS[case.model][0] * case.tokens * case.branches * (case.branch_tokens + 512)
    if logits > ORACLE_BYTES or 3 * case.cache_bytes(4) > ORACLE_BYTES:
        return {}
    exact = np.asarray(branch_attention(*arguments(case), implementation="reference"))
    return {"largest_error": float(np.abs(np.asarray(found, np.float32) - exact).max())}
