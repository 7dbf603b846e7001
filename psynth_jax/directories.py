"""Directories that are written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `target` at the end of the block.

    What was at `target` stays until then.  When the block raises, or the new directory cannot be moved into place, it stays
    for good.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Next to the target: a rename does not cross file systems.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
