"""Folders as archives that can be uploaded one by one, and back: launch/pack.sh writes, launch/adapter.sh reads them.

    PACK/NAME.tar-1-of-3 ...    pieces of a tar file, each at most `LIMIT` bytes
    PACK/SHA256SUMS             of the whole tar files, as `sha256sum` writes it

Needs Python 3.12 and no package.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

LIMIT = 60 << 20  # bytes of a piece
SUMS = "SHA256SUMS"
_BLOCK = 1 << 20
_PIECE = re.compile(r"(?P<name>[\w.-]+)\.tar-(?P<number>\d+)-of-(?P<count>\d+)", re.ASCII)


class Wrong(Exception):
    """What the caller has to change, in one line."""


def pack(folder: Path, name: str, files: Mapping[str, Path], limit: int = LIMIT) -> list[Path]:
    """Write files, by their paths in the archive, as pieces; return these.

    Pieces of the same name that are there are replaced.  Raises `OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}.tar-*"):
        old.unlink()
    with tempfile.TemporaryFile(dir=folder) as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for inside, path in sorted(files.items()):
                archive.add(path, inside, recursive=False, filter=_anonymous)
        size = whole.tell()
        whole.seek(0)
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
        whole.seek(0)
        count = max(-(-size // limit), 1)
        pieces = [folder / f"{name}.tar-{number}-of-{count}" for number in range(1, count + 1)]
        for piece in pieces:  # about equally large
            with piece.open("wb") as target:
                _copy(whole, target, -(-size // count))
    _note(folder, f"{name}.tar", digest)
    return pieces


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who made a file and when: the same files give the same archive."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def _copy(source: BinaryIO, target: BinaryIO, most: int) -> None:
    while most > 0 and (block := source.read(min(_BLOCK, most))):
        target.write(block)
        most -= len(block)


def _note(folder: Path, tar: str, digest: str) -> None:
    sums = _sums(folder)
    sums[tar] = digest
    lines = [f"{each}  {name}\n" for name, each in sorted(sums.items())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _sums(folder: Path) -> dict[str, str]:
    """Return the sums of the whole archives, by name."""
    file = folder / SUMS
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        digest, _, name = line.partition("  ")
        found[name] = digest
    return found


def unpack(folder: Path, into: Path) -> list[str]:
    """Extract all archives of a folder; return their names.  What has been extracted before is left as it is.

    Raises:
      Wrong: a piece or its sum is missing, or an archive is not what was packed.
      OSError: it cannot be written.
    """
    sums = _sums(folder)
    done = []
    for name, pieces in _pieces(folder):
        expected = sums.get(f"{name}.tar")
        if expected is None:
            raise Wrong(f"{folder / SUMS} has no line for {name}.tar: upload it too")
        stamp = into / ".unpacked" / f"{name}-{expected}"
        if not stamp.exists():
            _extract(name, pieces, expected, into)
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()
        done.append(name)
    missing = sorted(tar.removesuffix(".tar") for tar in sums if tar.removesuffix(".tar") not in done)
    if missing:
        raise Wrong(f"{folder} lacks the archive {missing[0]}.tar-1-of-...: upload it too")
    return done


def _pieces(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield the pieces of every archive, in their order.  Raises `Wrong` for one that is missing."""
    found: dict[str, dict[int, Path]] = {}
    counts: dict[str, int] = {}
    for path in sorted(folder.iterdir()):
        named = _PIECE.fullmatch(path.name)
        if named:
            found.setdefault(named["name"], {})[int(named["number"])] = path
            counts[named["name"]] = int(named["count"])
    for name, by_number in found.items():
        for number in range(1, counts[name] + 1):
            if number not in by_number:
                raise Wrong(f"{folder / name}.tar-{number}-of-{counts[name]} is missing: upload it too")
        yield name, [by_number[number] for number in sorted(by_number)]


def _extract(name: str, pieces: Iterable[Path], expected: str, into: Path) -> None:
    with tempfile.TemporaryFile() as whole:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, whole, _BLOCK)
        whole.seek(0)
        if hashlib.file_digest(whole, "sha256").hexdigest() != expected:
            raise Wrong(f"{name}.tar is not what was packed: upload its pieces and {SUMS} again")
        whole.seek(0)
        into.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(fileobj=whole) as archive:
                archive.extractall(into, filter="data")
        except tarfile.TarError as error:
            raise Wrong(f"{name}.tar holds what may not be extracted: {error}") from None
