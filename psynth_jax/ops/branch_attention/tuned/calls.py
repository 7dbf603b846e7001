"""The kernels' questions: which tiling does this call get?  Arguments as for the heuristics of `tuning.py` and its like.

The ways back of the kernels keep to their heuristics: tables hold what was measured of the forward pass.
"""

from __future__ import annotations

from psynth_jax.ops.branch_attention import tuning, tuning_gpu
from psynth_jax.ops.branch_attention.tuned.choice import choose
from psynth_jax.ops.branch_attention.tuned.forms import FORMS
from psynth_jax.ops.branch_attention.tuning import Tiles
from psynth_jax.ops.branch_attention.tuning_gpu import Device, GpuTiles
from psynth_jax.ops.branch_attention.tuning_xla import XlaTiles


def tpu_tiles(tokens: int, group: int, kv_heads: int, width: int, itemsize: int, sources: int, slots: int) -> Tiles:
    """Return the tiles of the TPU kernel; see `tuning.tiles`.

    sources is not part of the key: what a step costs is decided by the largest of them.
    """
    sizes = {"tokens": tokens, "group": group, "kv_heads": kv_heads, "width": width, "itemsize": itemsize, "slots": slots}
    return choose(
        FORMS["pallas_tpu"].key("pallas_tpu", **sizes),
        tuning.tiles(**sizes, sources=sources),
        lambda cut: tuning.fitting(cut, **sizes, sources=sources),
    )


def gpu_tiles(
    rows: int, width: int, itemsize: int, cached_itemsizes: tuple[int, ...], heads: int, slots: int, device: Device
) -> GpuTiles:
    """Return the tiles of the forward GPU kernel; see `tuning_gpu.forward_tiles`.

    Of several caches the key has the narrowest, which is what an 8-bit branch is next to an own cache.
    """
    cached = min(cached_itemsizes, default=itemsize)
    sizes = {"rows": rows, "heads": heads, "width": width, "itemsize": itemsize, "cached": cached, "slots": slots}
    return choose(
        FORMS["pallas_gpu"].key("pallas_gpu", **sizes),
        tuning_gpu.forward_tiles(rows, width, itemsize, cached_itemsizes, heads, slots, device),
        lambda cut: tuning_gpu.fitting(cut, width, itemsize, cached_itemsizes, slots, device),
    )


def xla_tiles(
    tokens: int, group: int, kv_heads: int, width: int, itemsize: int, cached: int, slots: int, heuristic: XlaTiles
) -> XlaTiles:
    """Return the tiles of the XLA form.

    Args:
      tokens, group, kv_heads, width: T, G, K and H of the call.
      itemsize, cached: bytes of a number of the queries, and of the largest cache.
      slots: capacity of the largest cache row; T when nothing is cached.
      heuristic: query tokens and slots of a step where nothing was measured.
    """

    def fitting(cut: XlaTiles) -> XlaTiles:
        return XlaTiles(min(cut.tokens, tokens), min(cut.slots, slots))

    key = FORMS["xla"].key(
        "xla",
        tokens=tokens,
        group=group,
        kv_heads=kv_heads,
        width=width,
        itemsize=itemsize,
        cached=cached,
        slots=slots,
    )
    return choose(key, fitting(heuristic), fitting)
