"""A bucket in memory, which honours conditions of writes, for tests that need no client and no store."""

from __future__ import annotations

import errno
import fnmatch
import io
from pathlib import Path

import pytest

from psynth_jax.storage.client import BucketError
from psynth_jax.storage.paths import BucketPath, Stored


class MemoryStore:
    """Objects by address: content and generation.  `fails`: addresses whose writes fail."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.fails: set[str] = set()
        self._generation = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have every `BucketPath` talk to this store."""
        store = self

        def files(path: BucketPath) -> list[Stored]:
            begin = f"{path}/" if path.key else str(path)
            found = store.objects.items()
            return sorted(
                (Stored(name.removeprefix(begin), len(x), n) for name, (x, n) in found if name.startswith(begin)),
                key=lambda each: each.name,
            )

        def read(path: BucketPath) -> tuple[bytes, int]:
            if str(path) not in store.objects:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            return store.objects[str(path)]

        def write(path: BucketPath, content: bytes, only_over: int | None = None) -> int:
            if str(path) in store.fails:
                raise BucketError(errno.EACCES, "not allowed", str(path))
            there = store.objects.get(str(path), (b"", 0))[1]
            if only_over not in (None, there):
                raise FileExistsError(errno.EEXIST, "somebody else has written it meanwhile", str(path))
            store._generation += 1
            store.objects[str(path)] = content, store._generation
            return store._generation

        def unlink(
            path: BucketPath, missing_ok: bool = False, only_over: int | None = None, patience: float | None = None
        ) -> None:
            if only_over not in (None, store.objects.get(str(path), (b"", 0))[1]):
                raise FileExistsError(errno.EEXIST, "somebody else has written it meanwhile", str(path))
            if store.objects.pop(str(path), None) is None and not missing_ok:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

        def download(path: BucketPath, target: Path, generation: int | None = None) -> None:
            content, there = read(path)
            if generation not in (None, there):
                raise FileExistsError(errno.EEXIST, "somebody else has written it meanwhile", str(path))
            target.write_bytes(content)

        def glob(path: BucketPath, pattern: str) -> list[BucketPath]:
            names = sorted({each.name.partition("/")[0] for each in files(path)})
            return [path / name for name in names if fnmatch.fnmatchcase(name, pattern)]

        replacements = {
            "files": files,
            "read_with_generation": read,
            "read_bytes": lambda path: read(path)[0],
            "write_bytes": write,
            "unlink": unlink,
            "is_file": lambda path: str(path) in store.objects,
            "is_dir": lambda path: bool(files(path)),
            "open": lambda path, mode="rb": io.BytesIO(read(path)[0]),
            "check_bucket": lambda path: None,
            "stat": lambda path: Stored(path.name, len(read(path)[0]), read(path)[1]),
            "glob": glob,
            "download": download,
            "upload": lambda path, source: write(path, Path(source).read_bytes()),
        }
        for name, method in replacements.items():
            monkeypatch.setattr(BucketPath, name, method)
