"""Any tree can be removed, and nothing that is not of the run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from psynth_jax.sandbox import folder, removal, supervisor
from psynth_jax.sandbox.folder import RunFolder
from psynth_jax.sandbox.user import User

ME = User(os.geteuid(), dropped=False)


@pytest.fixture
def made(tmp_path: Path) -> RunFolder:
    return folder.make(b"pass", {"a": b"x" * 10_000}, ME, tmp_path / "run")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file outside, which links lead to."""
    (tmp_path / "kept").mkdir()
    file = tmp_path / "kept" / "file"
    file.touch()
    return file


def test_any_tree_is_removed(made: RunFolder, kept: Path) -> None:
    (made.work / "link").symlink_to(kept.parent)
    os.mkfifo(made.work / "pipe")
    (made.work / "ä\n").mkdir()
    (made.work / os.fsdecode(b"\xff")).touch()
    here = os.open(made.work, os.O_RDONLY)
    for _ in range(1200):  # deeper than Python recurses, longer than a path can be
        os.mkdir("d" * 30, dir_fd=here)
        below = os.open("d" * 30, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    (made.work / "closed" / "below").mkdir(parents=True)
    (made.work / "closed").chmod(0)
    made.remove()
    assert not made.top.exists()
    assert kept.exists()


def test_links_in_place_of_folders_are_not_followed(made: RunFolder, kept: Path) -> None:
    (made.work / "a").unlink()
    made.work.rmdir()
    made.work.symlink_to(kept.parent)
    with pytest.raises(NotADirectoryError):
        made.remove()
    linked = made.top.with_name("linked")
    linked.symlink_to(kept.parent)
    with pytest.raises(NotADirectoryError):
        removal.remove(linked, "folder")
    assert kept.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder to another user")
def test_a_folder_of_another_user_is_left(made: RunFolder) -> None:
    os.chown(made.top, 54_321, 54_321)
    with pytest.raises(PermissionError, match="belongs to another user"):
        made.remove()
    assert (made.work / "a").exists()


def test_what_a_supervisor_left_is_removed_by_its_name(
    made: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "_temporary_folders", lambda: [tmp_path])
    like_it = tmp_path / "run-like"
    like_it.mkdir()
    supervisor.remove_left("none")
    supervisor.remove_left("run")
    assert list(tmp_path.iterdir()) == [like_it]
