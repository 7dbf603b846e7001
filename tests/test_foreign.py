"""What libraries raise about files: which of it is told as one line, and which passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from psynth_jax import files, foreign
from psynth_jax.errors import CheckpointError, DataError, InputError
from psynth_jax.foreign import LIBRARIES, reading, reason


class PanicException(BaseException):
    """As pyo3 makes it."""


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "raised", [ValueError("bad\n  value"), RecursionError("bad value")], ids=lambda raised: type(raised).__name__
)
def test_one_line_that_names_the_file(library: str, raised: Exception) -> None:
    with pytest.raises(CheckpointError, match=r"^some/file .*: bad value$"), reading("some/file", library):
        raise raised


def test_the_error_that_is_asked_for() -> None:
    with (
        pytest.raises(DataError, match=r"^rows.parquet cannot be read: bad$"),
        reading("rows.parquet", "pyarrow", DataError),
    ):
        raise TypeError("bad")


@pytest.mark.parametrize("raised", [Exception("no variant"), PanicException("index"), KeyError("model")])
def test_rust_raises_anything(raised: BaseException) -> None:
    with pytest.raises(CheckpointError, match=r"^tokenizer.json cannot be read: "), reading("tokenizer.json", "tokenizers"):
        raise raised


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), MemoryError(), InputError("said already")])
def test_what_passes(library: str, raised: BaseException) -> None:
    with pytest.raises(type(raised)) as found, reading("file", library):
        raise raised
    assert found.value is raised


def test_an_exception_that_the_library_does_not_raise_passes() -> None:
    with pytest.raises(TypeError), reading("file", "json"):
        raise TypeError
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"), reading("file", "jax"):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_what_our_own_functions_raise_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours below the block is no damaged file."""

    def mistaken(*_: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(foreign, "_PACKAGE", Path(__file__).parent)
    with pytest.raises(TypeError, match="ours"), reading("file", "transformers"):
        mistaken()


def test_what_a_library_raises_below_our_function_is_the_librarys(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^file is not valid JSON: Expecting"), reading("file", "json"):
        _parse("{")


def _parse(text: str) -> object:
    import json

    return json.loads(text)


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8\n")
    with pytest.raises(CheckpointError, match=r"is a Git LFS pointer.*git lfs pull"), reading(file, "safetensors"):
        raise ValueError("header too large")


def test_what_the_client_of_the_hub_raises() -> None:
    """Some of its errors are no error of anything else."""
    errors = pytest.importorskip("huggingface_hub.errors")
    for raised in (errors.EntryNotFoundError("x"), RuntimeError("of hf_xet"), TimeoutError("locked")):
        assert foreign.is_raised_by("huggingface_hub", raised)
    assert not foreign.is_raised_by("huggingface_hub", TypeError("x"))
    assert foreign.first_line(ValueError("first\nsecond")) == "first"


def test_reasons() -> None:
    assert reason(KeyError("format")) == "KeyError 'format'"
    assert reason(AssertionError()) == "AssertionError"
    assert reason(FileNotFoundError(2, "No such file or directory", "x")) == "No such file or directory"
    assert len(reason(ValueError("x" * 10_000))) == 300


def test_tests_know_the_package() -> None:
    assert Path(files.__file__).parent == foreign._PACKAGE
