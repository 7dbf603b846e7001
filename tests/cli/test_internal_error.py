"""What the command says of faults that are not the user's: one line, a file with the details, exit code 1."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from psynth_jax.cli import internal_error
from psynth_jax.convert import load
from tests.cli.conftest import Command

SECRET = "hf_secret_of_the_environment"


class PanicException(BaseException):
    """As pyo3 makes it for Rust code that gave up: no `Exception`."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.delenv("PSYNTH_DEBUG", raising=False)
    return tmp_path


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(load, "resolve", fails)


@pytest.mark.parametrize("error", [TypeError("two\nlines"), PanicException("index out of range"), KeyError(3)])
def test_one_line_and_a_file(psynth: Command, monkeypatch: pytest.MonkeyPatch, folder: Path, error: BaseException) -> None:
    fail_with(error, monkeypatch)
    done = psynth("info", "--model", "a model")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith(f"internal error: {type(error).__name__}: ")
    found = re.search(r"; details are in (\S+)$", done.err)
    assert found is not None
    file = Path(found[1])
    details = file.read_text()
    assert file.parent == folder and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert details.startswith("psynth info --model 'a model'\n")
    assert "psynth_jax " in details and "jaxlib " in details and "in fails\n" in details
    assert SECRET not in details


def test_debug_shows_the_traceback(psynth: Command, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PSYNTH_DEBUG", "1")
    fail_with(ValueError("no"), monkeypatch)
    done = psynth("info", "--model", "x")
    assert done.code == 1
    assert done.err.startswith("Traceback") and done.err.endswith("internal error: ValueError: no\n")
    assert list(folder.glob("*.log")) == []


def test_a_folder_that_cannot_be_written(psynth: Command, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(folder / "none"))
    fail_with(ValueError("no"), monkeypatch)
    done = psynth("info", "--model", "x")
    assert (done.code, done.err) == (1, "internal error: ValueError: no; set PSYNTH_DEBUG=1 to see where\n")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")])
def test_too_little_memory_is_no_fault_of_ours(
    psynth: Command, monkeypatch: pytest.MonkeyPatch, folder: Path, error: BaseException
) -> None:
    fail_with(error, monkeypatch)
    done = psynth("info", "--model", "x")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("error: there is not enough memory")
    assert list(folder.glob("*.log")) == []


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internal_error, "_LIBRARIES", ("no-such-library",))
    _, said, code = internal_error.told(ValueError("x"), [])
    file = Path(said.rpartition(" ")[2])
    assert code == 1 and "no-such-library is not installed" in file.read_text()
