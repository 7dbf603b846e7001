"""A path in a bucket, with the methods of `pathlib.Path` that runs, models and adapters need."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fnmatch
import functools
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from psynth_jax.errors import InputError, shown
from psynth_jax.storage import client

SCHEME = "gs://"
# https://cloud.google.com/storage/docs/buckets#naming
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


_CHUNK = 32 << 20  # bytes that one request of a download asks for


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object: its name below the path that was listed, its size in bytes, and the generation of its content."""

    name: str
    size: int
    generation: int


@functools.total_ordering
class BucketPath:
    """gs://BUCKET/KEY.

    A folder is there when an object's name begins with its key and a slash.  Methods raise `OSError` as those of
    `pathlib.Path` do, see `client`.
    """

    def __init__(self, address: str):
        """Take an address apart.  Raises `InputError` for one that names no bucket."""
        bucket, _, key = address.removeprefix(SCHEME).partition("/")
        if not address.startswith(SCHEME) or not _BUCKET.fullmatch(bucket):
            raise InputError(f"{shown(address)} is not an address of a bucket, such as gs://my-bucket/my-run")
        parts = [part for part in key.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in key or not key.isprintable():
            raise InputError(f"{shown(address)} has a name in it that no object here should have")
        self.bucket, self.key = bucket, "/".join(parts)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __lt__(self, other: BucketPath) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> BucketPath:
        return BucketPath(f"{self}/{name}")

    @property
    def name(self) -> str:
        """The last part of the key; of the bucket itself, its name."""
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def suffix(self) -> str:
        """The ending of the name, as `pathlib` has it."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> BucketPath:
        """The folder that it is in; of the bucket itself, the bucket."""
        return BucketPath(f"{SCHEME}{self.bucket}/{self.key.rpartition('/')[0]}")

    def absolute(self) -> BucketPath:
        """Return the same path: there are no relative ones."""
        return self

    def resolve(self) -> BucketPath:
        """Return the same path: a bucket has no links."""
        return self

    def expanduser(self) -> BucketPath:
        """Return the same path: it has no home folder in it."""
        return self

    def _blob(self) -> Any:
        return client.client().bucket(self.bucket).blob(self.key)

    @property
    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""

    def check_bucket(self) -> None:
        """Ask for the bucket itself.

        Orbax does so when it lists and removes checkpoints, and roles that allow all of objects need not allow that.
        """
        with client.asked(str(self)):
            client.client().get_bucket(self.bucket, retry=client.retry())

    def files(self) -> list[Stored]:
        """List all objects below this path, sorted by name."""
        with client.asked(str(self)):
            found = client.client().list_blobs(self.bucket, prefix=self._prefix, retry=client.retry())
            listed = [Stored(blob.name[len(self._prefix) :], blob.size, blob.generation) for blob in found]
        return sorted(filter(_is_file_name, listed), key=lambda each: each.name)

    def glob(self, pattern: str) -> Iterator[BucketPath]:
        """Go through files and folders right below whose names match."""
        begin = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
        with client.asked(str(self)):
            found = client.client().list_blobs(self.bucket, prefix=self._prefix + begin, delimiter="/", retry=client.retry())
            names = {blob.name for blob in found}
            names.update(folder.rstrip("/") for folder in found.prefixes)  # known when all were listed
        short = sorted(name[len(self._prefix) :] for name in names)
        return (self / name for name in short if name and fnmatch.fnmatchcase(name, pattern))

    def iterdir(self) -> Iterator[BucketPath]:
        """Go through files and folders right below.  Raises `FileNotFoundError` where there is nothing."""
        found = list(self.glob("*"))
        if not found:
            raise FileNotFoundError(errno.ENOENT, "nothing is there", str(self))
        return iter(found)

    def stat(self) -> Stored:
        """Return size and generation of this object, under its own name."""
        with client.asked(str(self)):
            blob = self._blob()
            blob.reload(retry=client.retry())
        return Stored(self.name, int(blob.size), int(blob.generation))

    def exists(self) -> bool:
        """Whether there is an object of this name, or one below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        if not self.key:
            return False
        with client.asked(str(self)):
            return bool(self._blob().exists(retry=client.retry()))

    def is_dir(self) -> bool:
        """Whether there is an object below this path."""
        with client.asked(str(self)):
            found = client.client().list_blobs(self.bucket, prefix=self._prefix, max_results=1, retry=client.retry())
            return any(True for _ in found)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder is there as soon as something is in it."""

    def open(self, mode: str = "rb") -> Any:
        """Open an object for reading in pieces.  Its errors are those of the client: use it within `client.asked`."""
        return self._blob().open(mode, retry=client.retry())

    def read_bytes(self) -> bytes:
        """Return the content."""
        with client.asked(str(self)):
            return bytes(self._blob().download_as_bytes(retry=client.retry()))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content as text."""
        return self.read_bytes().decode(encoding)

    def read_with_generation(self) -> tuple[bytes, int]:
        """Return the content and its generation, by which `write_bytes` can be made conditional.

        Raises `FileExistsError` where it was written in between.
        """
        with client.asked(str(self)):
            blob = self._blob()
            blob.reload(retry=client.retry())  # not every store tells the generation with the content
            generation = int(blob.generation)
            content = blob.download_as_bytes(if_generation_match=generation, retry=client.retry())
        return bytes(content), generation

    def write_bytes(self, content: bytes, only_over: int | None = None) -> int:
        """Write the content, whole or not at all; return its generation.

        Args:
          only_over: the generation that the write replaces; 0: none is there.  None replaces anything.

        Raises `FileExistsError` where another generation is there.  Stores that know no conditions overwrite it.
        """
        try:
            with client.asked(str(self)):
                blob = self._blob()
                blob.upload_from_string(
                    content, "application/octet-stream", if_generation_match=only_over, retry=client.retry()
                )
        except FileExistsError:
            # A write whose answer was lost is repeated by the client, and then finds itself.
            with contextlib.suppress(FileNotFoundError):  # what was there has been removed meanwhile
                found, generation = self.read_with_generation()
                if found == content:
                    return generation
            raise
        return int(blob.generation)

    def write_text(self, text: str, encoding: str = "utf-8") -> int:
        """Write a text, as `write_bytes` does."""
        return self.write_bytes(text.encode(encoding))

    def unlink(self, missing_ok: bool = False, only_over: int | None = None, patience: float | None = None) -> None:
        """Remove an object.

        Args:
          missing_ok: whether it may be gone already.
          only_over: the generation that is removed.  Raises `FileExistsError` where another one is there.
          patience: seconds for which a transient failure is tried again; None: as for everything else.
        """
        try:
            with client.asked(str(self)):
                self._blob().delete(if_generation_match=only_over, retry=client.retry(patience))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def download(self, target: Path, generation: int | None = None) -> None:
        """Copy an object to a file; its checksum is compared.

        Args:
          generation: which one is meant.  Raises `FileExistsError` where another one is there.
        """
        with client.asked(str(self)):
            blob = self._blob()
            blob.reload(if_generation_match=generation, retry=client.retry())
            with target.open("wb") as file:
                if blob.size:
                    # A chunk that fails is asked for again by itself, however long the others took.
                    blob.chunk_size = _CHUNK
                    meant = blob.generation
                    blob.download_to_file(file, if_generation_match=meant, checksum=None, retry=client.retry())
            client.check_sum(target, blob.crc32c)

    def upload(self, source: Path) -> None:
        """Copy a file to this object, whole or not at all; its checksum is compared."""
        with client.asked(str(self)):
            self._blob().upload_from_filename(str(source), retry=client.retry(), checksum="auto")


def _is_file_name(stored: Stored) -> bool:
    """Whether an object can be a file below a folder: its name leads to no other place.

    Consoles show a folder by an object of no bytes whose name ends in a slash.
    """
    return not {"", ".", ".."} & {*stored.name.split("/")}


AnyPath: TypeAlias = Path | BucketPath


def total_bytes(directory: AnyPath) -> int:
    """Return the size of all files in a directory."""
    if isinstance(directory, BucketPath):
        return sum(each.size for each in directory.files())
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def is_bucket(path: object) -> bool:
    """Whether a text or path names something in a bucket."""
    if isinstance(path, Path):
        return path.parts[:1] == ("gs:",)  # pathlib makes one slash of two
    return isinstance(path, BucketPath) or str(path).startswith(SCHEME)


def as_path(path: str | AnyPath) -> AnyPath:
    """Return a path on this disk, or in a bucket where it begins with gs://.

    Raises `InputError` for an address of another kind of store, or one that names no bucket.
    """
    if isinstance(path, BucketPath):
        return path
    text = str(path)
    if text.startswith(SCHEME):
        return BucketPath(text)
    if isinstance(path, Path) and is_bucket(path):
        return BucketPath(SCHEME + "/".join(path.parts[1:]))
    if "://" in text:
        scheme = text.partition("://")[0]
        raise InputError(f"{shown(text)}: {scheme}:// is not read here; give a folder, or a bucket as gs://...")
    return Path(path)
