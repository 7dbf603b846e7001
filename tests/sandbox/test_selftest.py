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
    programs = [selftest._LOOKS, selftest._FORKS, selftest._SPINS]

    def ask(job: Job) -> Outcome:
        return given[programs.index(job.program.decode())]

    monkeypatch.setattr(client, "ask", ask)
    monkeypatch.setattr(landlocked, "missing", lambda: None)
    selftest.forget()
    yield given
    selftest.forget()


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


def test_a_fault_is_tried_again(
    answers: list[Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = Outcome(None, True, "time", "", "", 30.0)
    outcomes = [busy, LOOKED]
    answers[0] = busy
    ask = client.ask

    def once_busy(job: Job) -> Outcome:
        looks = job.program.decode() == selftest._LOOKS
        return outcomes.pop(0) if looks else ask(job)

    monkeypatch.setattr(client, "ask", once_busy)
    assert selftest.fault("landlock") is None
    assert outcomes == []
    assert selftest.fault("landlock") is None


def test_a_fault_is_remembered_for_a_minute(
    answers: list[Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers[2] = Outcome(0, False, None, "", "", 60.0)
    now = 1000.0
    monkeypatch.setattr(selftest.time, "monotonic", lambda: now)
    assert selftest.fault("landlock") is not None
    answers[2] = TIMED_OUT
    now += 59.0
    assert selftest.fault("landlock") is not None
    now += 2.0
    assert selftest.fault("landlock") is None


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
