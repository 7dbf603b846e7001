"""Root with the capabilities that it has in a container: it cannot mount, nor trace others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.actors import Actor, Sandboxed, closing
from tests.sandbox.conftest import why_not


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Actor]:
    if (reason := why_not("container")) is not None:
        pytest.skip(reason)
    home: Path = tmp_path_factory.mktemp("home-container")
    with closing(Actor("container", home)) as actor:
        yield actor


@pytest.fixture(params=["bubblewrap", "landlock"])
def sandboxed(root: Actor, request: pytest.FixtureRequest) -> Sandboxed:
    made = Sandboxed(root, request.param)
    if (fault := made.fault()) is not None:
        pytest.skip(f"{request.param} as root of a container: {fault}")
    return made


def test_program_is_another_user_without_capabilities(sandboxed: Sandboxed) -> None:
    program = """
import ctypes, json, os
data = (ctypes.c_uint32 * 6)()
ctypes.CDLL(None).capget((ctypes.c_uint32 * 2)(0x20080522, 0), data)
print(json.dumps([os.getuid() >= 60578, list(data)]))
"""
    assert sandboxed.told(program) == [True, [0] * 6]


def test_shared_memory_counts_once(sandboxed: Sandboxed) -> None:
    program = """
import os, time
kept = b"x" * (30 << 20)
for _ in range(6):
    if os.fork() == 0:
        time.sleep(0.3)
        os._exit(0)
time.sleep(0.4)
print("done")
"""
    outcome = sandboxed.run(program, memory=140 << 20)
    assert (outcome.killed_for, outcome.stdout) == (None, "done\n"), outcome


def test_deleted_files_are_seen(sandboxed: Sandboxed) -> None:
    program = """
import os, time
for number in range(6):
    file = os.open("deleted", os.O_CREAT | os.O_WRONLY)
    os.unlink("deleted")
    os.write(file, b"x" * (1 << 20))
time.sleep(30)
"""
    assert sandboxed.run(program, seconds=20, files=4 << 20).killed_for == "files"


def test_fork_bomb(sandboxed: Sandboxed) -> None:
    program = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
    assert sandboxed.run(program, seconds=10, processes=12).killed_for == "processes"


def test_a_plain_program_that_takes_its_time(sandboxed: Sandboxed) -> None:
    outcome = sandboxed.run("import time; time.sleep(0.5); print(1)")
    assert (outcome.stdout, outcome.killed_for) == ("1\n", None)
