"""A self-test fails where a back end does not protect, and says what it found."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from psynth_jax.sandbox import bubblewrap, client, landlock, landlocked, selftest
from psynth_jax.sandbox.messages import Job
from psynth_jax.sandbox.outcome import Outcome

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sandboxes need Linux")

LOOKED = Outcome(0, False, None, "[]", "", 0.1)
BOUNDED = Outcome(None, False, "processes", "", "", 0.1)
TIMED_OUT = Outcome(None, True, "time", "", "", 0.1)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Outcome]]:
    """Let the three runs of the self-test of Landlock end like this."""
    given: list[Outcome] = [LOOKED, BOUNDED, TIMED_OUT]
    left: list[Outcome] = []

    def ask(job: Job) -> Outcome:
        if not left:
            left.extend(given)
        return left.pop(0)

    monkeypatch.setattr(client, "ask", ask)
    monkeypatch.setattr(landlocked, "missing", lambda: None)
    selftest.fault.cache_clear()
    yield given
    selftest.fault.cache_clear()


def test_all_is_well(answers: list[Outcome]) -> None:
    assert selftest.fault("landlock") is None


def test_a_file_can_be_read(answers: list[Outcome]) -> None:
    answers[0] = Outcome(0, False, None, json.dumps(["reads /etc/passwd"]), "", 0.1)
    assert selftest.fault("landlock") == "its self-test failed: a program reads /etc/passwd"


def test_python_does_not_start(answers: list[Outcome]) -> None:
    answers[0] = Outcome(127, False, None, "", "no libc\n", 0.1)
    assert selftest.fault("landlock") == "its self-test cannot run Python: no libc"


def test_a_fork_bomb_is_not_bounded(answers: list[Outcome]) -> None:
    answers[1] = Outcome(None, True, "time", "", "", 10.0)
    told = "its self-test failed: a fork bomb is not bounded: killed for time"
    assert selftest.fault("landlock") == told


def test_the_time_is_not_obeyed(answers: list[Outcome]) -> None:
    answers[2] = Outcome(0, False, None, "", "", 60.0)
    told = "its self-test failed: the time limit is not obeyed: killed for None"
    assert selftest.fault("landlock") == told


def test_secret_paths_are_readable_outside() -> None:
    """Else a self-test would pass anywhere."""
    open_to_us = [path for path in selftest._secret_paths() if _opens(path)]
    assert "/etc/passwd" in open_to_us


def test_what_python_needs_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "letter").touch()
    (tmp_path / "link").symlink_to("/usr/lib")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert selftest._secret_paths()[3:] == [str(tmp_path / "letter")]
    monkeypatch.setenv("HOME", "/")
    at_root = selftest._secret_paths()[3:]
    assert "/proc" in at_root
    assert not {"/usr", "/lib", "/etc", "/dev"} & {*at_root}


def _opens(path: str) -> bool:
    try:
        with Path(path).open("rb"):
            return True
    except IsADirectoryError:
        return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (0, "the kernel has no Landlock; it needs Linux 6.2 or later with lsm=landlock,..."),
        (2, "the kernel has version 2 of Landlock; 3 is needed (Linux 6.2)"),
        (3, None),
    ],
)
def test_old_kernels(monkeypatch: pytest.MonkeyPatch, version: int, message: str | None) -> None:
    monkeypatch.setattr(landlock, "version", lambda: version)
    assert landlocked.missing() == message


def test_bubblewrap_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert bubblewrap.find() is None
    assert bubblewrap.missing(None) == "bwrap is not installed; install the package bubblewrap"
