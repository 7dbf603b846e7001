"""`psynth sandbox`: what it says of this machine, and of a program."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from psynth_jax.cli import sandbox as cli
from psynth_jax.sandbox import selftest
from psynth_jax.sandbox.outcome import Outcome
from tests.cli.conftest import Command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sandboxes need Linux")

PROTECTED = {
    "files outside", "their names", "their modes and times", "network", "signals", "tracing",
    "background processes", "kernel interfaces",
}  # fmt: skip


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "program.py"
    text = "import sys\nprint('hä')\nsys.stderr.write('e')\nsys.exit(3)\n"
    file.write_text(text, encoding="utf-8")
    return file


def test_check(psynth: Command) -> None:
    told = psynth("sandbox", "check", "--json").json
    assert list(told) == [
        "chosen", "kernel", "machine", "landlock_version", "seccomp", "user", "backends",
    ]  # fmt: skip
    assert told["chosen"] in selftest.BACKENDS
    for name, backend in told["backends"].items():
        assert backend["available"] == (backend["why"] is None), name
        assert set(backend["protects"]) == PROTECTED
    shown = psynth("sandbox", "check")
    assert (shown.code, shown.out) == (0, "")
    assert f"auto takes {told['chosen']}" in shown.err
    for what in PROTECTED:
        assert what in shown.err


def test_run_as_json(psynth: Command, program: Path) -> None:
    told = psynth("sandbox", "run", program, "--json").json
    assert told.pop("seconds") > 0
    assert told == {
        "exit_code": 3,
        "timed_out": False,
        "killed_for": None,
        "stdout": "hä\n",
        "stderr": "e",
    }


def test_run(psynth: Command, program: Path) -> None:
    done = psynth("sandbox", "run", program)
    assert (done.code, done.out) == (0, "hä\n")
    first, last = done.err.splitlines()
    assert first == "e"
    assert last.startswith("the program ended with exit code 3 after 0.")


def test_a_terminal_obeys_no_program(
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcome = Outcome(0, False, None, "a\tä\x1b[2J\r\x9b1m\n", "\x07", 0.5)
    cli._pass_on(outcome)
    assert capsys.readouterr().out == outcome.stdout
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True)
    cli._pass_on(outcome)
    told = capsys.readouterr()
    assert told.out == "a\tä\\x1b[2J\\x0d\\x9b1m\n"
    assert told.err.splitlines()[0] == "\\x07"


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("while True: pass", "the program was killed for its time after 0."),
        ("import os; os.kill(os.getpid(), 11)", "signal 11 ended the program after 0."),
    ],
)
def test_other_endings(psynth: Command, program: Path, text: str, ending: str) -> None:
    program.write_text(text)
    done = psynth("sandbox", "run", program, "--seconds", 0.3)
    assert done.code == 0
    assert done.err.startswith(ending)


def test_limits_reach_the_program(psynth: Command, program: Path) -> None:
    program.write_text("print('x' * 1000)")
    told = psynth("sandbox", "run", program, "--output", 100, "--json").json
    assert (told["killed_for"], told["stdout"]) == ("output", "x" * 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", -1], "error: seconds is -1.0; it must be a positive number\n"),
        (["--memory", 5], "error: memory is 5; it must be a whole number, at least 16777216\n"),
        (
            ["--backend", "none"],
            "error: backend is 'none'; it must be one of auto, bubblewrap, landlock\n",
        ),
    ],
)
def test_what_is_refused(
    psynth: Command,
    program: Path,
    arguments: list[object],
    message: str,
) -> None:
    done = psynth("sandbox", "run", program, *arguments)
    assert (done.code, done.out, done.err) == (2, "", message)


def test_a_file_that_is_missing(psynth: Command, tmp_path: Path) -> None:
    done = psynth("sandbox", "run", tmp_path / "none.py")
    assert done.code == 2
    assert done.err == f"error: cannot read {tmp_path / 'none.py'}: No such file or directory\n"


def test_no_back_end(psynth: Command, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "fault", lambda name: "is missing")
    done = psynth("sandbox", "run", program)
    assert (done.code, done.err) == (
        2,
        "error: no sandbox is to be had here: bubblewrap: is missing; landlock: is missing\n",
    )
