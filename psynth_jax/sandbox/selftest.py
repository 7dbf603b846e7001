"""Try a back end on this machine before any program is trusted to it: three short runs.

looks   /etc/passwd and what is in the home directory cannot be read; no socket can be made
forks   a fork bomb ends, and is told
spins   an endless loop ends at its time, and is told
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from psynth_jax.errors import SandboxError
from psynth_jax.sandbox import bubblewrap, client, landlocked
from psynth_jax.sandbox.limits import Limits
from psynth_jax.sandbox.outcome import Outcome
from psynth_jax.sandbox.runtime import DEVICES, SYSTEM_PATHS

BACKENDS = (bubblewrap.NAME, landlocked.NAME)

_MOST_NAMES = 32
_REMEMBERED = 60.0  # seconds that a fault is taken for granted; it may have been a busy machine's

_passed: set[str] = set()
_failed: dict[str, tuple[str, float]] = {}  # the fault, and when it was found

_LOOKS = """
import json, os, socket
seen = []
for path in json.load(open("paths.json")):
    try:
        os.close(os.open(path, os.O_RDONLY))
        seen.append("reads " + path)
    except OSError:
        pass
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    try:
        socket.socket(family).close()
        seen.append(f"makes a socket of family {int(family)}")
    except OSError:
        pass
print(json.dumps(seen))
"""

# Each child waits, so that all of them live at once.
_FORKS = """
import os, time
for _ in range(40):
    if os.fork() == 0:
        time.sleep(20)
time.sleep(20)
"""

_SPINS = "while True: pass"


def fault(backend: str) -> str | None:
    """Return why a back end cannot be used here, or None.

    What has passed is not tried again in this process.  What has failed is tried twice, and again
    when it is asked for after a minute.
    """
    if backend in _passed:
        return None
    if backend in _failed:
        found, at = _failed[backend]
        if time.monotonic() - at < _REMEMBERED:
            return found
    again = _fault_now(backend) and _fault_now(backend)
    if again is None:
        _passed.add(backend)
        _failed.pop(backend, None)
    else:
        _failed[backend] = (again, time.monotonic())
    return again


def forget() -> None:
    """Forget what has passed and failed."""
    _passed.clear()
    _failed.clear()


def _fault_now(backend: str) -> str | None:
    try:
        if (lacks := _missing(backend)) is not None:
            return lacks
        return _looks(backend) or _forks(backend) or _spins(backend)
    except SandboxError as failed:
        return str(failed)


def _missing(backend: str) -> str | None:
    if backend == bubblewrap.NAME:
        return bubblewrap.missing(bubblewrap.find())
    return landlocked.missing()


def _looks(backend: str) -> str | None:
    paths = json.dumps(_secret_paths()).encode()
    outcome = _tried(backend, _LOOKS, Limits(seconds=30.0), {"paths.json": paths})
    if outcome.exit_code != 0:
        return f"its self-test cannot run Python: {_last_line(outcome)}"
    seen = json.loads(outcome.stdout)
    if seen:
        return f"its self-test failed: a program {seen[0]}"
    return None


def _forks(backend: str) -> str | None:
    outcome = _tried(backend, _FORKS, Limits(seconds=10.0, processes=8))
    # The kernel's own limit may be met first; the program then dies of the error.
    if outcome.killed_for == "processes" or "BlockingIOError" in outcome.stderr:
        return None
    return f"its self-test failed: a fork bomb is not bounded: {_last_line(outcome)}"


def _spins(backend: str) -> str | None:
    outcome = _tried(backend, _SPINS, Limits(seconds=0.1))
    if outcome.timed_out and outcome.seconds < 10.0:
        return None
    return f"its self-test failed: the time limit is not obeyed: {_last_line(outcome)}"


def _tried(
    backend: str,
    program: str,
    limits: Limits,
    files: dict[str, bytes] | None = None,
) -> Outcome:
    return client.ask(client.job_for(backend, program.encode(), files or {}, limits))


def _last_line(outcome: Outcome) -> str:
    lines = outcome.stderr.strip().splitlines() or [f"killed for {outcome.killed_for}"]
    return lines[-1]


def _secret_paths() -> list[str]:
    """Return paths that a program must not read: the passwords' file, and what is at home."""
    secret = ["/etc/passwd", "/etc/hostname", f"/proc/{os.getpid()}/environ"]
    try:
        entries = sorted(Path.home().resolve().iterdir())
    except (OSError, RuntimeError):  # RuntimeError: nobody knows a home
        return secret
    for entry in entries[:_MOST_NAMES]:
        if not entry.is_symlink() and not _is_granted(entry):
            secret.append(str(entry))
    return secret


def _is_granted(entry: Path) -> bool:
    """Whether a program may see a path: Python is below it, or above it.

    Python may be installed at home, and a home may be / or a folder of /usr/lib.
    """
    runtime = client.runtime_here()
    for name in (runtime.python, *runtime.paths, *SYSTEM_PATHS, *DEVICES):
        granted = Path(name)
        if entry == granted or entry in granted.parents or granted in entry.parents:
            return True
    return False
