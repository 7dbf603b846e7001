"""Reading and writing single files: nothing but regular files, no half-written ones, links and modes kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from psynth_jax import files
from psynth_jax.errors import CheckpointError, InputError


def test_reads_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("grün", encoding="utf-8")
    assert files.read_text(tmp_path / "a.txt") == "grün"


def test_a_fifo_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe is not a regular file"):
        files.read_text(tmp_path / "pipe", CheckpointError)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("absent", None, "cannot read .*absent: No such file"), ("latin", b"gr\xfcn", "latin is not a UTF-8 text file")],
)
def test_says_what_is_wrong(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        files.read_text(tmp_path / name)


def test_a_name_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="null byte"):
        files.read_text(f"{tmp_path}/a\0b")


def test_writing_keeps_a_link_and_follows_the_umask(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "link", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "real").read_text() == "new"
    assert (tmp_path / "disk" / "real").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "link", "real"]


def test_bytes_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    files.write_bytes(tmp_path / "a.png", b"\x89\xff\r\n")
    assert (tmp_path / "a.png").read_bytes() == b"\x89\xff\r\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
