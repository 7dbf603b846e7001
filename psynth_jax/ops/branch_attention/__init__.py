"""Attention over the row's own tokens, causally, plus any number of cached branches, in one softmax.

types.py           what is read: the own cache, segments of any cache
api.py             the operation, and the choice of its implementation
reference.py       the oracle: rotates, maps and concatenates the caches, then one plain softmax
xla.py             the folded form in blocks: reads cached keys and values where they lie; xla_vjp.py is the way back
differentiable.py  a way forth and a way back, of a kernel or the XLA form, as one differentiable operation
worklist.py        which block of which row a kernel reads at which step
pallas_tpu.py      the folded form as one kernel; tpu_blocks.py is its layout, pallas_tpu_vjp.py the way back
pallas_gpu.py      the same for GPUs; gpu_blocks.py walks the segments, pallas_gpu_vjp.py is the way back
cases.py           shapes of real models
*_tiles.py         how a kernel cuts its work; gpu_device.py says what a GPU has
"""

from psynth_jax.ops.branch_attention.api import branch_attention, branch_attention_partial, check_runs_here
from psynth_jax.ops.branch_attention.types import Context, ContextPart, Implementation, OwnCache, Segments

__all__ = [
    "Context",
    "ContextPart",
    "Implementation",
    "OwnCache",
    "Segments",
    "branch_attention",
    "branch_attention_partial",
    "check_runs_here",
]
