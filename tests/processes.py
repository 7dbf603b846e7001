"""Two processes that JAX makes one computer of: each with four CPU devices of its own, eight together.

main of a test's module  <-  join(port, number)  <-  python -m MODULE PORT NUMBER ...  <-  run_two(MODULE, ...)
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 240  # both, compiling included


def run_two(module: str, *arguments: str) -> list[str]:
    """Run `python -m MODULE PORT NUMBER ARGUMENTS` twice at once; return the last line that each has printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", module, str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen([*command, str(i), *arguments], cwd=ROOT, text=True, **pipes) for i in range(2)]
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, err) in zip(running, outputs, strict=True):
        assert process.returncode == 0, err[-3000:]
    return [out.splitlines()[-1] for out, _ in outputs]


def join(port: str, number: str) -> None:
    """Be one of the two.  Call it before anything else that asks JAX for devices."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
