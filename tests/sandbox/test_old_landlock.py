"""Kernels whose Landlock knows no scopes: seccomp lets a program signal itself only."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.sandbox import landlock
from tests.sandbox.actors import OTHER_UID, ROOT, worker_python
from tests.sandbox.conftest import why_not

SCRIPT = Path(__file__).with_name("old_landlock.py")
PROGRAM = """
import os, signal
told = []
for target in (os.getppid(), -1, {victim}):
    try:
        os.kill(target, 0)
        told.append("signals")
    except PermissionError:
        told.append("denied")
try:
    open("/etc/passwd")
except PermissionError:
    told.append("denied")
print(told, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("version", [3, 4, 5])
def test_signals_reach_nobody_else(version: int) -> None:
    if (reason := why_not("user")) is not None:
        pytest.skip(reason)
    if landlock.version() < version:
        pytest.skip(f"Landlock has version {landlock.version()} here")
    python = worker_python()
    assert python is not None
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        other = {"user": OTHER_UID, "group": OTHER_UID, "extra_groups": []}
    program = PROGRAM.format(victim=os.getpid())
    command = [python, "-B", str(SCRIPT), str(ROOT), str(version), program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **other)
    answer = json.loads(done.stdout)
    assert answer["stdout"] == "['denied', 'denied', 'denied', 'denied']\n", answer
    assert (answer["exit_code"], answer["killed_for"]) == (-15, "signal")
