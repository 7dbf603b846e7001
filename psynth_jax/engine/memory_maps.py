"""How many regions of memory this process has mapped, of those that Linux allows.

A program that was compiled for a CPU maps one for each of its kernels: hundreds, or thousands where
layers are separate.  Linux allows a process 65,530 (vm.max_map_count); past that, XLA's compiler
dies of a segmentation fault.  So a long evaluation of many shapes has to let programs go.
"""

from __future__ import annotations

from pathlib import Path

import jax

_MAPS = Path("/proc/self/maps")
_LIMIT = Path("/proc/sys/vm/max_map_count")
_ENOUGH = 0.5  # of the limit: half remains for what is compiled next, and for others
_GROWN = 0.1  # of the limit: taken anew since some went, before others go


def are_scarce(since: int = 0) -> bool:
    """Whether programs on a CPU have taken so many maps that some should go.

    since: how many were left when some had gone: what others hold does not make more of them go.
    """
    if jax.default_backend() != "cpu":
        return False
    allowed = limit()
    return allowed is not None and taken() > max(_ENOUGH * allowed, since + _GROWN * allowed)


def limit() -> int | None:
    """Return how many maps a process may have; None where the system does not say."""
    try:
        return int(_LIMIT.read_text())
    except (OSError, ValueError):
        return None


def taken() -> int:
    """Return how many maps this process has; 0 where the system does not say."""
    try:
        return _MAPS.read_bytes().count(b"\n")
    except OSError:
        return 0
