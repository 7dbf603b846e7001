"""What is read of processes in /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from psynth_jax.sandbox import kernel, processes, user

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

# A child, its child, and a thread; each waits for stdin to end.
FAMILY = """
import os, sys, threading
inner = os.fork()
if inner:
    threading.Thread(target=sys.stdin.read).start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", FAMILY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        yield process
        process.kill()


def test_descendants_are_found_in_both_ways(
    family: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = processes.descendants(os.getpid())
    assert family.pid in listed
    assert len(processes.children(family.pid)) == 1
    monkeypatch.setattr(processes, "lists_children", lambda: False)
    assert sorted(processes.descendants(os.getpid())) == sorted(listed)
    assert len(processes.children(family.pid)) == 1


def test_tasks_and_memory(family: subprocess.Popen[str]) -> None:
    both = [family.pid, *processes.descendants(family.pid)]
    used = processes.usage(both)
    assert used.tasks == 3
    shared_out = processes.shared_out_memory(both)
    assert shared_out is not None
    assert 1 << 20 < shared_out < used.memory < 100 << 20


def test_a_process_that_has_ended_uses_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    ended.wait()
    assert processes.usage([ended.pid]) == processes.Usage(0, 0)
    assert processes.shared_out_memory([ended.pid]) == 0
    assert processes.descendants(ended.pid) == []


def test_deleted_files() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 5000)
        file.flush()
        found = processes.deleted_files([os.getpid()], os.getuid())
        assert found.opened >= 5000
    assert found.hidden == frozenset()
    assert found.opened - processes.deleted_files([os.getpid()], os.getuid()).opened >= 5000


def test_one_memory() -> None:
    own = os.getpid()
    if not kernel.have_one_memory(own, own):
        pytest.skip("the kernel compares no processes")
    assert not kernel.have_one_memory(own, os.getppid())


def test_tasks_of_a_user() -> None:
    own = len(list(Path("/proc/self/task").iterdir()))
    assert user.tasks(os.getuid()) >= own
    assert user.tasks(2_147_483_600) == 0
