"""Which processes and threads there are, from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from psynth_jax.sandbox import kernel, processes, user
from tests.sandbox.conftest import Family

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def test_descendants_are_found_in_both_ways(
    family: Family,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = processes.descendants(os.getpid())
    assert family.pid in listed
    assert len(processes.children(family.pid)) == 1
    monkeypatch.setattr(processes, "lists_children", lambda: False)
    assert sorted(processes.descendants(os.getpid())) == sorted(listed)
    assert len(processes.children(family.pid)) == 1


def test_a_process_that_has_ended_has_no_descendants() -> None:
    ended = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    ended.wait()
    assert processes.descendants(ended.pid) == []
    assert processes.living_thread(ended.pid) is None


def test_one_memory() -> None:
    own = os.getpid()
    if not kernel.have_one_memory(own, own):
        pytest.skip("the kernel compares no processes")
    assert not kernel.have_one_memory(own, os.getppid())


def test_tasks_of_a_user() -> None:
    own = len(list(Path("/proc/self/task").iterdir()))
    assert user.tasks(os.getuid()) >= own
    assert user.tasks(2_147_483_600) == 0
