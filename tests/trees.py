"""Pytrees of arrays: where two differ, and how large one is."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def tree_differences(left: Any, right: Any, *, atol: float = 0.0) -> list[str]:
    """List where two pytrees differ, one line per leaf, each naming the leaf's key path.

    Compares structure, shape, dtype and values; NaN equals NaN.  Empty list: equal.

    Args:
      left, right: pytrees of arrays.
      atol: largest absolute difference of values that still counts as equal.
    """
    left_leaves = dict(jax.tree_util.tree_leaves_with_path(left))
    right_leaves = dict(jax.tree_util.tree_leaves_with_path(right))
    found = []
    for path in [*left_leaves, *(p for p in right_leaves if p not in left_leaves)]:
        name = jax.tree_util.keystr(path)
        if path not in left_leaves or path not in right_leaves:
            found.append(f"{name}: only in the {'left' if path in left_leaves else 'right'} tree")
            continue
        a, b = np.asarray(left_leaves[path]), np.asarray(right_leaves[path])
        if a.shape != b.shape or a.dtype != b.dtype:
            found.append(f"{name}: {a.dtype}{list(a.shape)} against {b.dtype}{list(b.shape)}")
        elif not np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=0.0, atol=atol, equal_nan=True):
            worst = np.nanmax(np.abs(a.astype(np.float64) - b.astype(np.float64)))
            found.append(f"{name}: values differ by up to {worst:.3g}")
    return found


def tree_bytes(tree: Any) -> int:
    """Return the bytes of all leaves."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
