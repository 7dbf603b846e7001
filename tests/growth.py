"""How the work of a function grows with its input, by the processor's time of this process alone."""

from __future__ import annotations

import time
from collections.abc import Callable


def assert_linear(work: Callable[[int], None], size: int) -> None:
    """Four times the input takes about four times the work; what is quadratic would take sixteen times as much."""
    small, large = _least_seconds(work, size), _least_seconds(work, 4 * size)
    assert large < 9 * small + 0.01, f"{small:.4f} s for {size}, {large:.4f} s for four times as much"


def _least_seconds(work: Callable[[int], None], size: int) -> float:
    found = []
    for _ in range(3):
        begin = time.process_time()
        work(size)
        found.append(time.process_time() - begin)
    return min(found)
