"""How programs end, what they say, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.sandbox.actors import NAME_ME, Sandboxed, named, wait_for_named

DAEMON = """
import os, time
if os.fork() == 0:
    try:
        os.setsid()
    except OSError:
        pass
    if os.fork() == 0:
        for stream in (0, 1, 2):
            os.close(stream)
        time.sleep(60)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("code", [0, 3, 139])
def test_exit_codes(sandboxed: Sandboxed, code: int) -> None:
    outcome = sandboxed.run(f"import os\nos._exit({code})")
    assert (outcome.exit_code, outcome.killed_for, outcome.timed_out) == (code, None, False)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_signals(sandboxed: Sandboxed, number: signal.Signals) -> None:
    outcome = sandboxed.run(f"import os\nos.kill(os.getpid(), {int(number)})")
    assert (outcome.exit_code, outcome.killed_for) == (-number, "signal")


def test_traceback(sandboxed: Sandboxed) -> None:
    outcome = sandboxed.run("def f():\n    return 1 / 0\nprint('a')\nf()")
    assert (outcome.exit_code, outcome.stdout) == (1, "a\n")
    assert outcome.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert 'program.py", line 2, in f' in outcome.stderr


def test_syntax_error_and_strange_text(sandboxed: Sandboxed) -> None:
    assert "SyntaxError" in sandboxed.run("print(").stderr
    assert sandboxed.run("").exit_code == 0
    assert sandboxed.run("x = '\0'").exit_code == 1
    assert sandboxed.run("x = '\ud800'").exit_code == 1


def test_unicode_and_binary_output(sandboxed: Sandboxed) -> None:
    program = """
import sys
print("ä€😀")
sys.stdout.flush()
sys.stdout.buffer.write(bytes([0xFF, 0x00, 0x41]))
"""
    assert sandboxed.run(program).stdout == "ä€😀\n�\0A"


@pytest.mark.parametrize("ending", ["", "time.sleep(60)", "os.kill(os.getpid(), 9)"])
def test_daemons_do_not_survive(sandboxed: Sandboxed, ending: str) -> None:
    token = f"d-{os.getpid()}-{len(ending)}"
    program = NAME_ME.replace("TOKEN", token) + DAEMON + ending
    outcome = sandboxed.run(program, seconds=0.4)
    assert outcome.seconds < 5
    assert named(token) == []


def test_child_that_holds_the_streams_does_not_hold_up(sandboxed: Sandboxed) -> None:
    outcome = sandboxed.run("import os, time\nif os.fork() == 0: time.sleep(60)\nprint('x')")
    assert (outcome.exit_code, outcome.stdout) == (0, "x\n")
    assert outcome.seconds < 5


def test_nothing_survives_the_parent(fresh_actor: Sandboxed) -> None:
    token = f"p-{os.getpid()}"
    program = NAME_ME.replace("TOKEN", token) + DAEMON + "time.sleep(60)"
    fresh_actor.actor.start(program, fresh_actor.backend, seconds=60)
    assert len(wait_for_named(token, 2)) == 2
    fresh_actor.actor.process.kill()
    assert wait_for_named(token, 0) == []
    _wait_for_no_folders(fresh_actor)


@pytest.mark.slow
def test_nothing_survives_the_supervisor(fresh_actor: Sandboxed) -> None:
    token = f"s-{os.getpid()}"
    program = NAME_ME.replace("TOKEN", token) + DAEMON + "time.sleep(60)"
    fresh_actor.actor.start(program, fresh_actor.backend, seconds=60)
    processes = wait_for_named(token, 2)
    assert len(processes) == 2
    supervisor, _ = _supervisor_and_server(processes[0])
    os.kill(supervisor, signal.SIGKILL)
    assert "has died" in fresh_actor.actor.answer()["error"]
    assert wait_for_named(token, 0) == []
    _wait_for_no_folders(fresh_actor)
    fresh_actor.actor.start("print(3)", fresh_actor.backend)
    assert fresh_actor.actor.answer()["stdout"] == "3\n"


@pytest.mark.slow
def test_the_program_dies_with_the_supervisor_and_the_server(fresh_actor: Sandboxed) -> None:
    token = f"b-{os.getpid()}"
    # It asks to live on when its parent dies.
    program = NAME_ME.replace("TOKEN", token) + (
        """
import time
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
time.sleep(60)
"""
    )
    fresh_actor.actor.start(program, fresh_actor.backend, seconds=60)
    (process,) = wait_for_named(token, 1)
    time.sleep(0.1)
    supervisor, server = _supervisor_and_server(process)
    os.kill(server, signal.SIGSTOP)  # so that it cannot clean up
    os.kill(supervisor, signal.SIGKILL)
    os.kill(server, signal.SIGKILL)
    assert "has died" in fresh_actor.actor.answer()["error"]
    assert wait_for_named(token, 0) == []


@pytest.mark.slow
def test_server_that_died_is_replaced(fresh_actor: Sandboxed) -> None:
    (server,) = _children(fresh_actor.actor.process.pid)
    os.kill(server, signal.SIGKILL)
    time.sleep(0.1)
    fresh_actor.actor.start("print(4)", fresh_actor.backend)
    assert fresh_actor.actor.answer()["stdout"] == "4\n"


def test_folder_is_removed(sandboxed: Sandboxed) -> None:
    program = """
import os
os.makedirs("a/b/c")
os.mkfifo("pipe")
os.symlink("/", "a/link")
open("a/b/c/file", "w").close()
"""
    assert sandboxed.run(program).exit_code == 0
    assert sandboxed.actor.folders() == []


def _wait_for_no_folders(sandboxed: Sandboxed) -> None:
    until = time.monotonic() + 5
    while sandboxed.actor.folders() and time.monotonic() < until:
        time.sleep(0.01)
    assert sandboxed.actor.folders() == []


def _supervisor_and_server(process: int) -> tuple[int, int]:
    """Return the processes above a process of a run."""
    chain = [process]
    while chain[-1] > 1:
        chain.append(_parent(chain[-1]))
    # ... program, perhaps bubblewrap, supervisor, server, worker, this process
    own = chain.index(os.getpid())
    return chain[own - 3], chain[own - 2]


def _parent(process: int) -> int:
    text = Path(f"/proc/{process}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


def _children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]
