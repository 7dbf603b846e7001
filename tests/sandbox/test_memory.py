"""How much memory processes use, each page counted once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from psynth_jax.sandbox import memory, processes
from psynth_jax.sandbox.processes import fields
from tests.sandbox.conftest import Family

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

MIB = 1 << 20

# Its first thread ends; another one holds 20 MiB, and says so.
ENDS_IN_PART = """
import ctypes, os, platform, threading, time
def hold():
    time.sleep(0.1)
    kept = b"x" * (20 << 20)
    os.write(1, b"ready\\n")
    os.read(0, 1)
    os._exit(0)
threading.Thread(target=hold).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


def test_tasks_and_memory(family: Family) -> None:
    both = [family.pid, *processes.descendants(family.pid)]
    used = memory.usage(both)
    assert used.tasks == 3
    shared_out = memory.shared_out_memory(both)
    assert shared_out is not None
    assert MIB < shared_out < used.memory < 100 * MIB


def test_page_tables_count(family: Family) -> None:
    proportional = 0
    parts = {b"Pss": "smaps_rollup", b"SwapPss": "smaps_rollup", b"VmPTE": "status"}
    for kind, file in parts.items():
        proportional += fields(Path(f"/proc/{family.pid}/{file}"), (kind,))[kind] * 1024
    assert fields(Path(f"/proc/{family.pid}/status"), (b"VmPTE",))[b"VmPTE"] > 0
    found = memory.shared_out_memory([family.pid])
    assert found is not None
    assert abs(found - proportional) < 64 << 10


def test_shared_memory_that_nobody_has_mapped_counts(family: Family) -> None:
    before = memory.shared_out_memory([family.pid])
    after = memory.shared_out_memory([family.pid], 300 * MIB)
    assert before is not None and after is not None
    assert abs(after - before - 300 * MIB) < MIB


def test_processes_whose_first_threads_have_ended_count_each() -> None:
    held = []
    try:
        for _ in range(2):
            command = [sys.executable, "-I", "-S", "-c", ENDS_IN_PART]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            held.append(subprocess.Popen(command, **pipes))
        for process in held:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        one = memory.shared_out_memory([held[0].pid])
        both = memory.shared_out_memory([process.pid for process in held])
        assert one is not None and both is not None
        assert one > 20 * MIB and both > 40 * MIB
    finally:
        for process in held:
            process.kill()
            process.communicate()


def test_a_process_that_has_ended_uses_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    ended.wait()
    assert memory.usage([ended.pid]) == memory.Usage(0, 0)
    assert memory.shared_out_memory([ended.pid]) == 0
