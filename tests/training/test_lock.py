"""One run at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from psynth_jax.errors import TrainingError
from psynth_jax.training.lock import FILE, working_in
from tests.processes import ROOT

HOLDS = """
import sys
from psynth_jax.training.lock import working_in
with working_in(sys.argv[1]):
    print(1, flush=True)
    input()
"""


def test_a_second_run_is_named_and_refused(tmp_path: Path) -> None:
    with working_in(tmp_path / "run"):
        said = rf"^another run \(pid {os.getpid()} on {socket.gethostname()}\) works in {tmp_path}/run$"
        with pytest.raises(TrainingError, match=said), working_in(tmp_path / "run"):
            pytest.fail("both work")
        with working_in(tmp_path / "other"):
            pass
    with working_in(tmp_path / "run"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        with pytest.raises(TrainingError, match=rf"another run \(pid {process.pid} on "), working_in(tmp_path):
            pass
        process.kill()
        process.wait()
    with working_in(tmp_path):
        assert str(os.getpid()) in (tmp_path / FILE).read_text()


def test_a_refused_start_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), working_in(tmp_path / "run"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    with pytest.raises(ZeroDivisionError), working_in(tmp_path / "run"):
        raise ZeroDivisionError
    assert (tmp_path / "run").is_dir()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("/proc/run", "/proc/self", tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(TrainingError, match="cannot be written: ") as error, working_in(place):
            pytest.fail("it was written")
        assert "\n" not in str(error.value)


def test_a_lock_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(TrainingError, match="not a regular file"), working_in(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", none)
    with working_in(tmp_path), working_in(tmp_path):
        assert (tmp_path / FILE).exists()


def test_a_holder_that_has_not_said_who_it_is(tmp_path: Path) -> None:
    with working_in(tmp_path):
        (tmp_path / FILE).write_bytes(b"\xff\0\n")
        with pytest.raises(TrainingError, match=r"another run \(.*\) works in"), working_in(tmp_path):
            pass
        os.truncate(tmp_path / FILE, 0)
        with pytest.raises(TrainingError, match="another run \\(of an unknown process\\)"), working_in(tmp_path):
            pass
