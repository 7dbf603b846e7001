"""The one attention operation of the library.

The T new tokens of a row attend to each other causally, and to **runs**: neighbouring slots of rows
of any cache, each belonging to one branch.  A branch has one rotation (it re-encodes the branch's
positions) and four mapper scalars per layer:

    new tokens     row b     [ t0 t1 q  . ]                 causal
    cache          row r     [ .  .  s  s  s  s  . ]        run (row r, first 2, length 4, branch w)

What a row has cached itself is a run too, and so is a prompt that several workers share: with
rotation 0 and scalars (1, 0, 1, 0).  Caches come whole and stacked over layers, with a layer index;
they are only read here, so running through layers never slices, carries or copies one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from types import ModuleType
from typing import get_args

import jax
import jax.numpy as jnp

from psynth_jax.axes import Array, KeysOrValues, Queries
from psynth_jax.errors import InputError
from psynth_jax.ops.branch_attention import xla_decode
from psynth_jax.ops.branch_attention.types import Context, Implementation
from psynth_jax.ops.partial import Partial, normalised


def branch_attention(
    q: Queries,
    k: KeysOrValues,
    v: KeysOrValues,
    context: Context | None,
    layer: Array | int,
    scale: float,
    implementation: Implementation = "auto",
    window: Array | None = None,
) -> Queries:
    """Attend to the new tokens causally and to every run of `context`, in one softmax.

    Key s of branch w counts as `aK * R(-shift_w) k_s + bK`, its value as `aV * v_s + bV`
    (Parallel-Synthesis, arXiv 2606.14672).  Slots outside of runs may hold anything, NaN included.

    Args:
      q: `[B, T, N, H]`, rotated at the queries' own positions, not scaled.
      k, v: `[B, T, K, H]` of the same tokens, k rotated.
      context: what is read besides; None when nothing is.
      layer: index on L of all the caches.
      scale: what logits are multiplied with; a Python number, known when the call is traced.
      window: scalar int32; a query at position p sees what stands after p - window.  None: all.
      implementation: "auto" takes the kernel on a TPU or GPU, and the XLA form elsewhere and where the kernel lacks
        something, which is logged once.

    Returns:
      `[B, T, N, H]` in q's dtype.

    Raises:
      InputError: no such implementation, or one that is named cannot take this call.
    """
    module = _module(implementation, q, context)
    return module.attend(q, k, v, context, layer, scale, None, q.dtype, window)[0]


def branch_attention_partial(
    q: Queries,
    k: KeysOrValues,
    v: KeysOrValues,
    context: Context | None,
    layer: Array | int,
    scale: float,
    implementation: Implementation = "auto",
    with_new: Array | None = None,
    window: Array | None = None,
) -> Partial:
    """Attend as `branch_attention` does, and return what merges with attention over other keys, out `[B, T, N, H]`.

    Args:
      q, k, v, context, layer, scale, implementation, window: see `branch_attention`.
      with_new: scalar bool, whether the new tokens are attended to.  They are on one of several
        devices that hold the same rows; None: they are.

    Raises:
      InputError: as `branch_attention` does.
    """
    module = _module(implementation, q, context)
    seen = module.attend(q, k, v, context, layer, scale, with_new, jnp.float32, window)
    return normalised(*seen)


def lay_out(context: Context, window: int | None = None) -> Context:
    """Lay out, once for all layers with this window, what a step of one token a row reads.

    Only the XLA form uses it; where a kernel runs, XLA drops what nobody reads.
    """
    blocks = []
    for part in context.parts:
        runs = part.runs
        if window is not None:
            runs = runs.within(context.query_position, window)
        blocks.append(xla_decode.lay_out(runs, part.heads.slots))
    return dataclasses.replace(context, blocks=tuple(blocks))


def _module(implementation: Implementation, q: Queries, context: Context | None) -> ModuleType:
    # Only what attends needs them, and Pallas takes 0.2 s to import.
    from psynth_jax.ops.branch_attention import gpu_device, pallas_gpu, pallas_tpu, reference, xla

    _check_name(implementation)
    if implementation != "auto":
        return {"xla": xla, "pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu, "reference": reference}[implementation]
    kernel = {"tpu": pallas_tpu, "gpu": pallas_gpu}.get(jax.default_backend())
    if kernel is None:
        return xla
    lacks = kernel.unsupported(q, context)
    if lacks is None and kernel is pallas_gpu:
        lacks = gpu_device.too_old()
    if lacks is None:
        return kernel
    _say_once(f"attention runs as XLA: the kernel does not take {lacks}")
    return xla


def _check_name(implementation: str) -> None:
    if implementation not in get_args(Implementation):
        raise InputError(f"implementation is {implementation!r}; it must be one of {', '.join(get_args(Implementation))}")


def check_runs_here(implementation: str) -> None:
    """Raise `InputError` for an implementation that the default device cannot run, or that does not exist."""
    _check_name(implementation)
    platform = {"pallas_tpu": "tpu", "pallas_gpu": "gpu"}.get(implementation)
    if platform not in (None, jax.default_backend()):
        raise InputError(
            f"implementation {implementation} needs a {platform.upper()}; the default device here is {jax.default_backend()}"
        )


@functools.cache
def _say_once(message: str) -> None:
    logging.getLogger("psynth_jax").warning(message)
