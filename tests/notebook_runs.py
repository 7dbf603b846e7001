"""Executions of notebooks with launch/execute_notebook.py, for a test of one and for those of tests/extern/notebooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Values of the parameters cell that make a notebook small.  The others are executed as they are.
SMALL = {
    "quickstart": ["MODEL=tiny-random", "ADAPTER=null", "NEW_TOKENS=8", "BRANCH_TOKENS=[16, 32]", "REPEATS=1"],
}


def execute(path: Path, target: Path) -> str:
    """Execute a notebook from start to end on the CPU, fail the test if a cell fails, and return what was printed."""
    command = [sys.executable, str(ROOT / "launch" / "execute_notebook.py"), str(path), str(target)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # The notebook finds the package that is under test, whatever is installed.
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [*command, *SMALL.get(path.stem, [])],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
