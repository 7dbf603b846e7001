"""Directories that are written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from psynth_jax.errors import InputError


@contextmanager
def replacing(target: Path, names: Collection[str], what: str) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `target` at the end of the block.

    What was at `target` stays until then.  When the block raises, or the new directory cannot be moved into place, it stays
    for good.

    Raises `InputError` when `target` holds anything but files of these names: it is not `what`, and would be lost.
    """
    if target.exists():
        strange = [target.name] if not target.is_dir() else [p.name for p in target.iterdir() if p.name not in names]
        if strange:
            raise InputError(f"{target} exists and is not {what}: it has {min(strange)}; choose another name")
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
