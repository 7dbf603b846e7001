"""Directories written whole or not at all: through links, with the modes of the umask, and gone after a signal."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from psynth_jax.directories import followed, made, replacing
from psynth_jax.errors import InputError
from tests.umask import umask


def write(target: Path, content: str = "new") -> None:
    with replacing(target, ("file",), "mine") as fresh:
        (fresh / "file").write_text(content)


class TestLinks:
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Path:
        (tmp_path / "disk").mkdir()
        return tmp_path / "disk"

    @pytest.mark.parametrize("there", [True, False], ids=["a folder", "nothing yet"])
    @pytest.mark.parametrize("relative", [True, False])
    def test_what_it_points_to_is_written(self, tmp_path: Path, disk: Path, there: bool, relative: bool) -> None:
        if there:
            write(disk / "model", "old")
        (tmp_path / "link").symlink_to("disk/model" if relative else disk / "model")
        (tmp_path / "twice").symlink_to("link")
        write(tmp_path / "twice")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "twice").is_symlink()
        assert not (disk / "model").is_symlink() and (disk / "model" / "file").read_text() == "new"
        assert sorted(path.name for path in tmp_path.rglob("*") if not path.is_symlink()) == ["disk", "file", "model"]

    def test_into_folders_that_are_still_to_be_made(self, tmp_path: Path, disk: Path) -> None:
        (tmp_path / "link").symlink_to(disk / "a" / "b")
        write(tmp_path / "link")
        assert (disk / "a" / "b" / "file").read_text() == "new"

    def test_what_is_strange_behind_it_stays(self, tmp_path: Path, disk: Path) -> None:
        (disk / "thesis.txt").write_text("years of work")
        (tmp_path / "link").symlink_to(disk)
        with pytest.raises(InputError, match=r"it has thesis\.txt"):
            write(tmp_path / "link")
        assert [path.name for path in disk.iterdir()] == ["thesis.txt"]

    def test_that_lead_to_themselves(self, tmp_path: Path) -> None:
        (tmp_path / "one").symlink_to("two")
        (tmp_path / "two").symlink_to("one")
        for target in ("one", "two"):
            with pytest.raises(InputError, match="leads back to itself"):
                write(tmp_path / target)

    def test_a_parent_that_is_a_link_to_nothing_yet(self, tmp_path: Path, disk: Path) -> None:
        (tmp_path / "link").symlink_to(disk / "data")
        with made(tmp_path / "link"):
            write(tmp_path / "link" / "task")
        assert (disk / "data" / "task" / "file").read_text() == "new"

    def test_no_path_at_all(self) -> None:
        with pytest.raises(InputError, match="null"):
            followed(Path("a\0b"))


class TestMountedDisks:
    """A mounted disk can be filled, but neither renamed nor replaced."""

    @pytest.fixture
    def mounted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "disk").mkdir()
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
        return tmp_path / "disk"

    def test_is_filled(self, mounted: Path, tmp_path: Path) -> None:
        number = mounted.stat().st_ino
        (tmp_path / "link").symlink_to(mounted)
        write(tmp_path / "link", "old")
        write(tmp_path / "link", "new")
        assert mounted.stat().st_ino == number
        assert [path.name for path in mounted.iterdir()] == ["file"]
        assert (mounted / "file").read_text() == "new"

    @pytest.mark.parametrize("when", ["written", "moved"])
    def test_stays_as_it_was_when_that_fails(self, mounted: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
        write(mounted, "old")
        rename = Path.rename

        def busy(self: Path, target: Path) -> Path:
            if self.parent.name == "new":
                raise OSError("busy")
            return rename(self, target)

        def fails() -> None:
            with replacing(mounted, ("file",), "mine"):
                raise OSError("busy")

        with monkeypatch.context() as patch:
            if when == "moved":
                patch.setattr(Path, "rename", busy)
            with pytest.raises(OSError, match="busy"):
                write(mounted) if when == "moved" else fails()
        assert [path.name for path in mounted.iterdir()] == ["file"]
        assert (mounted / "file").read_text() == "old"


def test_the_working_directory_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell would else be left in a folder that is gone."""
    monkeypatch.chdir(tmp_path)
    number = tmp_path.stat().st_ino
    write(Path())
    assert Path("file").read_text() == "new" and tmp_path.stat().st_ino == number


def interrupted(target: Path, error: BaseException) -> None:
    """Write half of a directory, then be ended."""
    with replacing(target, (), "mine") as fresh:
        (fresh / "half").touch()
        raise error


class TestAfterASignal:
    @pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt()], ids=repr)
    def test_nothing_is_left(self, tmp_path: Path, error: BaseException) -> None:
        with pytest.raises(type(error)):
            interrupted(tmp_path / "out", error)
        assert list(tmp_path.iterdir()) == []

    def test_nor_after_another_one_while_it_is_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        remove, calls = shutil.rmtree, []

        def ended_again(*arguments: object, **settings: object) -> None:
            calls.append(arguments)
            if len(calls) == 1:
                raise SystemExit(143)
            remove(*arguments, **settings)  # type: ignore[arg-type]

        monkeypatch.setattr(shutil, "rmtree", ended_again)
        with pytest.raises(SystemExit):
            interrupted(tmp_path / "out", KeyboardInterrupt())
        assert list(tmp_path.iterdir()) == []

    def test_nor_what_a_thread_still_writes(self, tmp_path: Path) -> None:
        def write_on(folder: Path) -> None:
            for number in range(1000):
                with contextlib.suppress(OSError):
                    (folder / str(number)).touch()

        def write_in_a_thread() -> None:
            with replacing(tmp_path / "out", (), "mine") as fresh:
                threads.append(threading.Thread(target=write_on, args=(fresh,)))
                threads[0].start()
                raise SystemExit

        threads: list[threading.Thread] = []
        with pytest.raises(SystemExit):
            write_in_a_thread()
        threads[0].join()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_the_mode_is_what_the_umask_says(tmp_path: Path, mask: int, mode: int) -> None:
    with umask(mask):
        write(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == mode
    assert (tmp_path / "out" / "file").stat().st_mode & 0o777 == mode & 0o666
