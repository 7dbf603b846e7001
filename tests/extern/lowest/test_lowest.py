"""The oldest versions that pyproject.toml allows: one test of each room, and the whole tests of what reads and writes.

Each run is a process of its own, as in CI on Python 3.11.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[3]
PINS = [line.split("==") for line in (Path(__file__).parent / "lowest.txt").read_text(encoding="utf-8").splitlines()]
FILES = [
    "tests/convert/test_hf.py",
    "tests/convert/test_gguf.py",
    "tests/data/test_shards.py",
    "tests/data/test_prepare.py",
    "tests/cli/test_run.py",
    "tests/training/test_trainer.py",
    "tests/test_notebook_run.py",
]


def test_the_oldest_versions_are_installed() -> None:
    installed = {name: Version(version(name)) for name, _ in PINS}
    assert installed == {name: Version(oldest) for name, oldest in PINS}


def passes(*arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    print(done.stdout.splitlines()[-1])


def test_each_room_passes_its_smoke_test() -> None:
    passes("@tests/smoke.txt")


@pytest.mark.parametrize("file", FILES)
def test_file_passes(file: str) -> None:
    passes("-m", "not slow", file)
