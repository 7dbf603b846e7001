"""Runs programs without a sandbox, for tests whose programs are known."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_LAUNCHER = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))
runpy.run_path("main.py", run_name="__main__")
"""


@dataclasses.dataclass(frozen=True)
class FakeOutcome:
    exit_code: int | None
    stdout: str


@dataclasses.dataclass
class FakeSandbox:
    """Counts its runs, and passes on what was printed even where the time ran out."""

    runs: int = 0

    def __call__(self, program: str, files: Mapping[str, bytes], seconds: float) -> FakeOutcome:
        self.runs += 1
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            Path(folder, "main.py").write_text(program, encoding="utf-8")
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(command, cwd=folder, start_new_session=True, **streams)
            try:
                written, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                written, _ = process.communicate()
                return FakeOutcome(None, written.decode("utf-8", "replace"))
            return FakeOutcome(process.returncode, written.decode("utf-8", "replace"))
