"""Who runs programs in a sandbox: root, or a user without capabilities; each with a back end."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psynth_jax.sandbox import syscalls
from psynth_jax.sandbox.outcome import Outcome
from psynth_jax.sandbox.runtime import open_to_all

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
OTHER_UID = 54_321  # nobody's

# Root as it is in a container: it may not mount, and not trace the processes of others.
_HELD = "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service"
_BOUND = ",".join(["-all", *(f"+{name}" for name in _HELD.split())])
CONTAINER = ["setpriv", f"--bounding-set={_BOUND}", "--inh-caps=-all"]


def worker_python() -> str | None:
    """Return a Python that any user can run, or None."""
    if os.geteuid() != 0:
        return sys.executable
    for name in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        candidate = Path(name)
        if candidate.exists() and open_to_all(candidate) and open_to_all(WORKER):
            asked = "import sys; sys.exit(sys.version_info < (3, 11))"
            if subprocess.run([candidate, "-c", asked], check=False).returncode == 0:
                return str(candidate)
    return None


class Actor:
    """A process that runs programs in a sandbox, with its own environment and home."""

    def __init__(self, who: str, home: Path) -> None:
        self.who = who
        self.home = home
        self.faults: dict[str, str | None] = {}
        (home / "secret").write_text("of the home")
        if who == "user" and os.geteuid() == 0:
            os.chown(home, OTHER_UID, OTHER_UID)
        other: dict[str, Any] = {}
        command = [sys.executable]
        if who == "container":
            command = [*CONTAINER, worker_python() or sys.executable]
        if who == "user" and os.geteuid() == 0:
            other = {"user": OTHER_UID, "group": OTHER_UID, "extra_groups": []}
            command = [worker_python() or sys.executable]
        # Not pytest's folder: that of root is closed to all others.
        self.scratch = Path(tempfile.mkdtemp(prefix="psynth-test-", dir="/tmp"))
        self.scratch.chmod(0o777)
        self.secret = f"secret-{home.name}"
        variables = {"HOME": str(home), "A_TOKEN": self.secret}
        variables |= {"PATH": os.environ["PATH"], "TMPDIR": str(self.scratch)}
        self.process = subprocess.Popen(
            [*command, "-B", str(WORKER), str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env=variables,
            **other,
        )

    def start(self, program: str, backend: str, **limits: float) -> None:
        """Ask for a run; do not wait."""
        assert self.process.stdin is not None
        asked = {"program": program, "backend": backend, "limits": limits}
        self.process.stdin.write(json.dumps(asked).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the run that was asked for."""
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        shutil.rmtree(self.scratch)

    def folders(self) -> list[str]:
        """Return the folders of runs that there are now."""
        return sorted(path.name for path in self.scratch.iterdir())


class Sandboxed:
    """An actor and a back end."""

    def __init__(self, actor: Actor, backend: str) -> None:
        self.actor = actor
        self.backend = backend

    def fault(self) -> str | None:
        """Return why this back end does not work for this actor, or None.  It is tried once."""
        if self.backend not in self.actor.faults:
            self.actor.start("pass", self.backend)
            self.actor.faults[self.backend] = self.actor.answer().get("error")
        return self.actor.faults[self.backend]

    def run(self, program: str, **limits: float) -> Outcome:
        """Run a program to its end."""
        self.actor.start(program, self.backend, **limits)
        answer = self.actor.answer()
        assert "error" not in answer, answer
        return Outcome(**answer)

    def told(self, program: str, **limits: float) -> Any:
        """Run a program that must end by itself, and return the JSON that it prints."""
        outcome = self.run(program, **limits)
        assert (outcome.exit_code, outcome.killed_for) == (0, None), outcome
        return json.loads(outcome.stdout)


def named(token: str) -> list[int]:
    """Return the processes of this name: see `NAME_ME`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "comm").read_text().strip() == token:
                    found.append(int(entry.name))
    return found


def wait_for_named(token: str, count: int, seconds: float = 10.0) -> list[int]:
    """Wait until so many processes have this name; return what there is in the end."""
    until = time.monotonic() + seconds
    while len(found := named(token)) != count and time.monotonic() < until:
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def closing(actor: Actor) -> Iterator[Actor]:
    """End an actor at the end of the block."""
    try:
        yield actor
    finally:
        actor.close()


# Lines for the top of a program: it, and its children, are named TOKEN in /proc.
NAME_ME = """
import ctypes
ctypes.CDLL(None).prctl(15, b"TOKEN")
"""

# Lines for the top of a program: what an attempt ends with, `done` or the name of an errno.
_NUMBERS = {name: syscalls.number(name, platform.machine()) for name in syscalls.NAMES}
ATTEMPTS = (
    f"numbers = {_NUMBERS!r}"
    + """
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)

def attempt(action, *arguments):
    try:
        action(*arguments)
    except OSError as failed:
        return errno.errorcode[failed.errno]
    return "done"

def call(number, *arguments):
    number = numbers.get(number, number)
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    if libc.syscall(ctypes.c_long(number), *words) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
"""
)
