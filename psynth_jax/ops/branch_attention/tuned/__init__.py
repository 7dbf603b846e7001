"""Tilings that were measured, used in place of the heuristics' where there is one.

table.py     keys and tables
forms.py     what each kernel's tilings look like; tables as JSON; KIND.json here: tables that come with the library
choice.py    which table is in use: `install`, `using`, `asked`
calls.py     the kernels' questions
"""

from psynth_jax.ops.branch_attention.tuned.calls import gpu_tiles, tpu_tiles, xla_tiles
from psynth_jax.ops.branch_attention.tuned.choice import Asked, asked, install, installed, local_kind, using
from psynth_jax.ops.branch_attention.tuned.forms import FORMAT, candidates, read, read_json, shipped, slug
from psynth_jax.ops.branch_attention.tuned.table import Key, Table, bucket

__all__ = [
    "FORMAT",
    "Asked",
    "Key",
    "Table",
    "asked",
    "bucket",
    "candidates",
    "gpu_tiles",
    "install",
    "installed",
    "local_kind",
    "read",
    "read_json",
    "shipped",
    "slug",
    "tpu_tiles",
    "using",
    "xla_tiles",
]
