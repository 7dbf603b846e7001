"""Addresses of buckets: what is one, what it is made of, and what is said without the packages for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from psynth_jax.errors import ConfigError, InputError
from psynth_jax.storage import client
from psynth_jax.storage.paths import BucketPath, as_path, is_bucket
from tests.storage.memory import MemoryStore


class TestAddress:
    def test_is_taken_apart(self) -> None:
        path = BucketPath("gs://some-bucket//a/./b/x.tar.gz/")
        assert (path.bucket, path.key, path.name, path.suffix) == ("some-bucket", "a/b/x.tar.gz", "x.tar.gz", ".gz")
        assert str(path.parent) == "gs://some-bucket/a/b"
        assert str(path.parent / "c") == "gs://some-bucket/a/b/c"
        assert BucketPath("gs://some-bucket").parent == BucketPath("gs://some-bucket/") == as_path("gs://some-bucket")

    @pytest.mark.parametrize(
        "wrong",
        ["gs://", "gs:///a", "gs://A/b", "gs://a b/c", "gs://bucket/../x", "gs://bucket/a\0", "gs://bucket/a\nb", "/tmp"],
    )
    def test_what_is_none_is_refused(self, wrong: str) -> None:
        with pytest.raises(InputError):
            BucketPath(wrong)

    def test_what_pathlib_makes_of_one_is_known(self) -> None:
        assert is_bucket(Path("gs://some-bucket/run")) and is_bucket("gs://some-bucket/run")
        assert as_path(Path("gs://some-bucket/run")) == BucketPath("gs://some-bucket/run")
        assert not is_bucket("runs/gs") and as_path("runs/gs") == Path("runs/gs")

    @pytest.mark.parametrize("other", ["s3://bucket/run", "https://host/run"])
    def test_other_stores_are_refused(self, other: str) -> None:
        with pytest.raises(InputError, match="is not read here; give a folder, or a bucket as gs://"):
            as_path(other)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'psynth-jax\[gcs\]'"):
        BucketPath("gs://some-bucket/run").files()


class TestFolder:
    def test_lists_what_is_right_below(self, store: MemoryStore) -> None:
        place = BucketPath("gs://some-bucket/run")
        for name in ("a", "b/c", "b/d"):
            (place / name).write_bytes(b"")
        assert [path.name for path in place.iterdir()] == ["a", "b"]
        assert [path.name for path in place.glob("b*")] == ["b"]
        assert place.exists() and place.is_dir() and not place.is_file() and (place / "b" / "c").is_file()

    def test_of_nothing_is_none(self, store: MemoryStore) -> None:
        place = BucketPath("gs://some-bucket/run")
        assert not place.exists() and list(place.glob("*")) == []
        with pytest.raises(FileNotFoundError):
            place.iterdir()
