"""The Python interface, in this process; and that one back end at least works on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from psynth_jax import sandbox
from psynth_jax.errors import InputError, SandboxError
from psynth_jax.sandbox import api, check, selftest
from psynth_jax.sandbox.outcome import Outcome
from tests.sandbox.actors import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sandboxes need Linux")


def test_one_back_end_works_here() -> None:
    report = check.check()
    assert report.chosen in selftest.BACKENDS, report


def test_run() -> None:
    outcome = sandbox.run("print(6 * 7)", sandbox.Limits(seconds=5))
    assert outcome == Outcome(0, False, None, "42\n", "", outcome.seconds)
    assert 0 < outcome.seconds < 5


def test_files_are_in_its_folder() -> None:
    program = "import json; print(json.load(open('a.json')), open('b', 'a').tell())"
    outcome = sandbox.run(program, files={"a.json": json.dumps([1, "ä"]).encode(), "b": b"xy"})
    assert outcome.stdout == "[1, 'ä'] 2\n"


def test_numpy_can_be_imported() -> None:
    outcome = sandbox.run("import numpy; print(numpy.arange(3).sum())")
    assert (outcome.stdout, outcome.exit_code) == ("3\n", 0), outcome


def test_many_threads_at_once() -> None:
    box = sandbox.Sandbox(sandbox.Limits(seconds=20))
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda n: box.run(f"print({n})"), range(8)))
    assert [outcome.stdout for outcome in outcomes] == [f"{n}\n" for n in range(8)]


def test_limits_of_one_run() -> None:
    box = sandbox.Sandbox(sandbox.Limits(seconds=20))
    assert box.run("while True: pass", limits=sandbox.Limits(seconds=0.2)).timed_out


FORKS = """
import atexit, os, signal, sys
sys.path.insert(0, sys.argv[1])
from psynth_jax import sandbox
waiting = []
atexit.register(lambda: [os.kill(child, 9) for child in waiting])  # after the end of the server
sandbox.run("pass")
waiting.append(os.fork())
if waiting == [0]:
    signal.pause()
if os.fork() == 0:
    print(sandbox.run("print('from a fork')").stdout, end="", flush=True)
    os._exit(0)
os.waitpid(-1, 0)
print(sandbox.run("print('from the parent')").stdout, end="", flush=True)
"""


def test_a_fork_has_a_server_of_its_own() -> None:
    # In a process of its own: the one of pytest has threads.
    command = [sys.executable, "-W", "error", "-c", FORKS, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("from a fork\nfrom the parent\n", "")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/x", "a\0b", "a\nb", "ä" * 128])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="a plain name without / is needed"):
        sandbox.run("pass", files={name: b""})


def test_files_over_the_limit_are_refused() -> None:
    limits = sandbox.Limits(files=10)
    with pytest.raises(InputError) as raised:
        sandbox.run("pass", limits, files={"a": b"x" * 11})
    assert str(raised.value) == "the files have 11 bytes; the limit is 10"


def test_unknown_back_end_is_refused() -> None:
    with pytest.raises(InputError) as raised:
        sandbox.run("pass", backend="none")
    assert str(raised.value) == "backend is 'none'; it must be one of auto, bubblewrap, landlock"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, str | None], None]:
    """Let the self-tests end as the test says."""

    def set_faults(bubblewrap: str | None, landlock: str | None) -> None:
        found = {"bubblewrap": bubblewrap, "landlock": landlock}
        monkeypatch.setattr(selftest, "fault", found.__getitem__)

    return set_faults


def test_what_auto_takes(faults: Callable[[str | None, str | None], None]) -> None:
    faults(None, None)
    assert api.choose("auto") == "bubblewrap"
    assert api.choose("landlock") == "landlock"
    faults("is not installed", None)
    assert api.choose("auto") == "landlock"
    assert check.check().chosen == "landlock"


def test_nothing_runs_without_a_back_end(
    faults: Callable[[str | None, str | None], None],
) -> None:
    faults("bwrap is not installed; install the package bubblewrap", "the kernel has no Landlock")
    with pytest.raises(SandboxError) as raised:
        sandbox.run("pass")
    assert str(raised.value) == (
        "no sandbox is to be had here: bubblewrap: bwrap is not installed; install the package "
        "bubblewrap; landlock: the kernel has no Landlock"
    )
    assert check.check().chosen is None
    with pytest.raises(SandboxError, match="landlock: the kernel has no Landlock"):
        sandbox.run("pass", backend="landlock")


def test_public_names() -> None:
    assert {name: getattr(sandbox, name).__class__.__name__ for name in sandbox.__all__} == {
        "KilledFor": "_LiteralGenericAlias",
        "Limits": "type",
        "Outcome": "type",
        "Sandbox": "type",
        "run": "function",
    }
    with pytest.raises(AttributeError, match="has no attribute 'walk'"):
        _ = sandbox.walk
