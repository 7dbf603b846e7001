"""Directories in a bucket: whole or not read, copied once, and nothing of anybody else overwritten."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from psynth_jax.directories import replacing
from psynth_jax.errors import InputError
from psynth_jax.files import read_text, write_text
from psynth_jax.storage import publishing
from psynth_jax.storage.client import BucketError
from psynth_jax.storage.paths import BucketPath
from psynth_jax.storage.publishing import adopt
from psynth_jax.storage.staging import UPLOADING, staged, staged_file
from tests.storage.memory import MemoryStore

PLACE = BucketPath("gs://some-bucket/adapter")


def write(*names: str) -> None:
    with replacing(PLACE, ("a", "b", "c"), "an adapter") as fresh:
        for name in names:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_text(name)


def names() -> list[str]:
    return [each.name for each in PLACE.files()]


class TestWriting:
    def test_replaces_all_that_was_there(self, store: MemoryStore) -> None:
        write("a", "b")
        write("b", "c/d")
        assert names() == ["b", "c/d"]

    def test_an_error_in_the_block_changes_nothing(self, store: MemoryStore) -> None:
        write("a")
        with pytest.raises(ZeroDivisionError), replacing(PLACE, ("a",), "an adapter"):
            raise ZeroDivisionError
        assert names() == ["a"]

    def test_keeps_what_is_somebody_elses(self, store: MemoryStore) -> None:
        (PLACE / "thesis").write_bytes(b"")
        with pytest.raises(InputError, match="exists and is not an adapter: it has thesis"):
            write("a")
        assert names() == ["thesis"]

    def test_a_single_object_and_a_whole_bucket_are_no_target(self, store: MemoryStore) -> None:
        PLACE.write_bytes(b"")
        for target in (PLACE, BucketPath("gs://some-bucket")):
            with pytest.raises(InputError), replacing(target, (), "an adapter"):
                pass

    def test_an_upload_that_stopped_is_marked_and_not_read(self, store: MemoryStore) -> None:
        write("a", "b")
        store.fails.add(str(PLACE / "b"))
        with pytest.raises(BucketError, match="it is incomplete"):
            write("a", "b")
        assert UPLOADING in names()
        with pytest.raises(InputError, match="was not uploaded to its end"):
            staged(PLACE)
        store.fails.clear()
        write("a")
        assert names() == ["a"] and (staged(PLACE) / "a").read_text() == "a"

    def test_who_has_written_meanwhile_is_not_overwritten(self, store: MemoryStore) -> None:
        def both() -> None:
            with replacing(PLACE, ("a",), "an adapter"):
                (PLACE / "thesis").write_bytes(b"")

        with pytest.raises(InputError, match="it has thesis"):
            both()
        assert names() == ["thesis"]

    def test_an_upload_from_elsewhere_is_waited_for_unless_it_is_adopted(self, store: MemoryStore) -> None:
        begun = {"host": "elsewhere", "pid": 7, "time": time.time(), "files": ["a", "b"]}
        (PLACE / "b").write_bytes(b"half")
        (PLACE / UPLOADING).write_bytes(json.dumps(begun).encode())
        with pytest.raises(InputError, match="is being written by pid 7 on elsewhere"):
            write("a")
        adopt(PLACE)
        write("a")
        assert names() == ["a"]
        adopt(PLACE)  # nothing is there to be adopted
        assert names() == ["a"]

    def test_an_upload_from_elsewhere_that_says_no_more_is_written_again(self, store: MemoryStore) -> None:
        begun = {"host": "elsewhere", "pid": 7, "time": time.time() - publishing._AT_WORK - 1, "files": ["a"]}
        (PLACE / UPLOADING).write_bytes(json.dumps(begun).encode())
        write("a")
        assert names() == ["a"]

    def test_a_long_upload_says_that_it_is_at_work(self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        upload = BucketPath.upload

        def waits(path: BucketPath, source: Path) -> None:
            if path.name == "c":  # which takes until the mark has been renewed
                begin, end = store.objects[str(PLACE / UPLOADING)][1], time.monotonic() + 60
                while store.objects[str(PLACE / UPLOADING)][1] == begin and time.monotonic() < end:
                    time.sleep(0.01)
                assert time.monotonic() < end
            upload(path, source)

        monkeypatch.setattr(BucketPath, "upload", waits)
        monkeypatch.setattr(publishing, "_RENEW", 0.05)
        write("a", "b", "c")
        assert names() == ["a", "b", "c"]

    def test_of_two_uploads_one_ends(self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        upload = BucketPath.upload

        def another(path: BucketPath, source: Path) -> None:
            upload(path, source)
            (PLACE / UPLOADING).write_bytes(b"{}")

        monkeypatch.setattr(BucketPath, "upload", another)
        with pytest.raises(BucketError, match="somebody else has written it meanwhile"):
            write("a")
        assert UPLOADING in names(), "the other one has not ended"


class TestReading:
    def test_copies_what_is_wanted_once(self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        write("a", "b", "c/d")
        copy = staged(PLACE, ["*"], ["b"])
        assert sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()) == ["a", "c/d"]
        monkeypatch.setattr(BucketPath, "download", None)  # a second copy would fail
        assert staged(PLACE, ["*"], ["b"]) == copy

    def test_a_new_generation_is_a_new_copy(self, store: MemoryStore) -> None:
        write("a")
        before = staged_file(PLACE / "a")
        (PLACE / "a").write_bytes(b"new")
        assert staged_file(PLACE / "a").read_bytes() == b"new" and before.read_bytes() == b"a"

    def test_a_download_that_failed_leaves_nothing(
        self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def fails(path: BucketPath, target: Path, generation: int) -> None:
            target.write_bytes(b"half")
            raise ConnectionError(5, "gone")

        write("a")
        monkeypatch.setattr(BucketPath, "download", fails)
        with pytest.raises(InputError, match=f"cannot copy {PLACE} to .*: gone"):
            staged(PLACE)
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []

    def test_what_a_killed_download_left_is_removed_a_day_later(self, store: MemoryStore, tmp_path: Path) -> None:
        write("a")
        folder = tmp_path / "cache" / "buckets" / PLACE.bucket / PLACE.key
        for name, age in ((".0123-old", 90_000), (".4567-new", 10)):
            (folder / name).mkdir(parents=True)
            os.utime(folder / name, (time.time() - age,) * 2)
        staged(PLACE)
        assert {path.name for path in folder.glob(".*")} == {".4567-new"}

    def test_nothing_there(self, store: MemoryStore) -> None:
        with pytest.raises(InputError, match="there is nothing in"):
            staged(PLACE)
        with pytest.raises(InputError, match=f"there is no {PLACE}"):
            staged_file(PLACE)


def test_texts(store: MemoryStore) -> None:
    write_text(f"{PLACE}/note", "x")
    assert read_text(f"{PLACE}/note") == "x"
    with pytest.raises(InputError, match=f"cannot read {PLACE}/none: No such file"):
        read_text(f"{PLACE}/none")
