"""The folder of a run: who may look into it, and what is counted in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from psynth_jax.sandbox import folder
from psynth_jax.sandbox.folder import RunFolder
from psynth_jax.sandbox.user import User

ME = User(os.geteuid(), dropped=False)


@pytest.fixture
def made(tmp_path: Path) -> RunFolder:
    return folder.make(b"pass", {"a": b"x" * 10_000}, ME, tmp_path / "run")


def test_what_is_made(made: RunFolder) -> None:
    assert made.program.read_bytes() == b"pass"
    assert {path.name: path.stat().st_size for path in made.work.iterdir()} == {"a": 10_000}
    modes = [path.stat().st_mode & 0o777 for path in (made.top, made.program, made.work)]
    assert modes == [0o700, 0o400, 0o700]


def test_sizes_are_rounded_up_to_blocks(made: RunFolder) -> None:
    disk = made.work / "a"
    assert made.used(1 << 30) == max(10_000, disk.stat().st_blocks * 512)


def test_every_name_counts(made: RunFolder) -> None:
    before = made.used(1 << 30)
    (made.work / "link").symlink_to("/usr")
    (made.work / "empty").touch()
    (made.work / "folder").mkdir()
    (made.work / "folder" / "empty").touch()
    assert made.used(1 << 30) - before == 4 * 4096


def test_a_sparse_file_counts_as_what_it_says(made: RunFolder) -> None:
    os.truncate(made.work / "a", 1 << 30)
    assert made.used(1 << 40) == 1 << 30


def test_counting_stops_where_it_is_enough(made: RunFolder) -> None:
    for number in range(100):
        (made.work / f"{number}").touch()
    assert 8192 < made.used(8192) <= 8192 + 12_288


def test_a_link_in_place_of_the_folder_is_not_followed(made: RunFolder) -> None:
    (made.work / "a").unlink()
    made.work.rmdir()
    made.work.symlink_to("/usr")
    assert made.used(1000) == 1001


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder to another user")
def test_the_user_of_a_run_is_let_in(tmp_path: Path) -> None:
    other = User(54_321, dropped=True)
    made = folder.make(b"pass", {"a": b""}, other, tmp_path / "run")
    found = []
    for path in (made.top, made.program, made.work, made.work / "a"):
        status = path.stat()
        found.append((status.st_mode & 0o777, status.st_uid, status.st_gid))
    assert found[:2] == [(0o710, 0, 54_321), (0o440, 0, 54_321)]
    assert found[2:] == [(0o700, 54_321, 54_321), (0o600, 54_321, 54_321)]


def test_what_is_there_already_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("/usr")
    with pytest.raises(FileExistsError):
        folder.make(b"pass", {}, ME, tmp_path / "run")
