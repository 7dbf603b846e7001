"""The server kills what a dead supervisor leaves, and not itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.sandbox.actors import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sandboxes need Linux")

# The supervisor dies when it has forked, and its child has not yet made a session of its own.
DIES_EARLY = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from psynth_jax.sandbox import kernel, processes, server
kernel.adopt_orphans()
supervisor = os.fork()
if supervisor == 0:
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(os.getpid(), 9)
server._folders[supervisor] = "psynth-sandbox-none"
while server._folders:
    server._reap()
print(processes.children(os.getpid()), flush=True)
"""


def test_an_orphan_in_the_group_of_the_server_dies_alone() -> None:
    command = [sys.executable, "-I", "-S", "-c", DIES_EARLY, str(ROOT)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
