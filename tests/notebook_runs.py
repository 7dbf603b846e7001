"""Executions of notebooks with launch/execute_notebook.py, for a test of one and for those of tests/extern/notebooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Values of the parameters cell that make a notebook small: no test says that it is of use, only that it runs.
SMALL = {
    "convert": ["MODEL=tiny-random", "ADAPTER=None"],
    "method_by_hand": ["MODEL=smollm2-135m"],  # its arithmetic is that of Llama's layers
    "own_data": ["MODEL=tiny-random", "ADAPTER=None", "STEPS=2", "EXAMPLES=8", "CASES=24", "QUESTIONS=4"],
    "scale_out": ['SLICES=["v5e-16"]', "TRAIN_SLICES=[]"],
    "train_adapter": [
        *("MODEL=tiny-random", "STEPS=2", "MORE_STEPS=1", "EXAMPLES=8", "RECORDS=16", "QUESTIONS=4"),
    ],
    "quickstart": ["MODEL=tiny-random", "ADAPTER=None", "NEW_TOKENS=8", "BRANCH_TOKENS=[16, 32]", "REPEATS=1"],
}


def run(path: Path, target: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """Execute a notebook from start to end on the CPU with these values of its parameters cell."""
    command = [sys.executable, str(ROOT / "launch" / "execute_notebook.py"), str(path), str(target), *settings]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # The notebook finds the package that is under test, whatever is installed.
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def execute(path: Path, target: Path) -> str:
    """Execute one of `NOTEBOOKS` in small, fail the test if a cell fails, and return what was printed."""
    done = run(path, target, *SMALL[path.stem])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
