"""Attention over the row's own tokens, causally, plus any number of cached branches, in one softmax.

api.py        the operation, its argument types, choice of implementation
reference.py  the oracle: rotates, maps and concatenates the caches, then one plain softmax
xla.py        the folded form in blocks: reads cached keys and values where they lie
"""

from psynth_jax.ops.branch_attention.api import (
    AttentionSpec,
    Context,
    ContextPart,
    Implementation,
    OwnCache,
    Segments,
    branch_attention,
    branch_attention_partial,
)

__all__ = [
    "AttentionSpec",
    "Context",
    "ContextPart",
    "Implementation",
    "OwnCache",
    "Segments",
    "branch_attention",
    "branch_attention_partial",
]
