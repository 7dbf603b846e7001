"""The umask for the length of a block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set it, and set it back."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
