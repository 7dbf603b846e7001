"""Attention over new tokens, causally, plus any number of cached runs, in one softmax.

types.py           what is read: runs of slots of any cache
api.py             the operation, and the choice of its implementation
reference.py       the oracle: rotates, maps and concatenates the caches, then one plain softmax
xla.py             the folded form in blocks: reads cached keys and values where they lie
                   xla_blocks.py walks the runs, xla_decode.py reads one token a row, xla_vjp.py is the backward pass
differentiable.py  a forward and a backward pass, of a kernel or the XLA form, as one differentiable operation
worklist.py        which block of which row a kernel reads at which step
pallas_tpu.py      the folded form as one kernel; tpu_blocks.py is its layout, pallas_tpu_vjp.py the backward pass
pallas_gpu.py      the same for GPUs; gpu_blocks.py walks the runs, pallas_gpu_vjp.py is the backward pass
cases.py           shapes of real models
*_tiles.py         how a kernel cuts its work; gpu_device.py says what a GPU has
"""

from psynth_jax.ops.branch_attention.api import (
    branch_attention,
    branch_attention_partial,
    check_runs_here,
    lay_out,
)
from psynth_jax.ops.branch_attention.types import Blocks, Context, ContextPart, Implementation, Runs

__all__ = [
    "Blocks",
    "Context",
    "ContextPart",
    "Implementation",
    "Runs",
    "branch_attention",
    "branch_attention_partial",
    "check_runs_here",
    "lay_out",
]
