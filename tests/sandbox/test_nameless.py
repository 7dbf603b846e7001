"""Deleted files and shared memory that processes hold."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from pathlib import Path

import pytest

from psynth_jax.sandbox import nameless

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

MIB = 1 << 20
LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_void_p
ME = [os.getpid()], os.getuid()


@pytest.fixture(autouse=True)
def all_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may have more maps than are looked at: JAX takes one for each kernel of a program."""
    monkeypatch.setattr(nameless, "_MOST_MAPS", 1 << 28)


def test_deleted_files() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 5000)
        file.flush()
        found = nameless.look(*ME)
        assert found.opened >= 5000
    assert found.hidden == frozenset()
    assert found.opened - nameless.look(*ME).opened >= 5000


def test_a_file_that_is_mapped_only_counts_where_the_program_can_write(tmp_path: Path) -> None:
    library = tmp_path / "lib" / "x.so"
    library.parent.mkdir()
    library.write_bytes(b"x" * 5000)
    before = nameless.look(*ME).mapped
    address = mapped(library)
    library.unlink()
    try:
        counts = []
        for installed in ([], [str(tmp_path / "li")], [str(library)], [str(library.parent)]):
            counts.append(nameless.look(*ME, installed).mapped - before)
    finally:
        LIBC.munmap(address, 4096)
    assert counts == [1, 1, 0, 0]


def mapped(path: Path) -> ctypes.c_void_p:
    """Map the first page of a file.  Python's own map keeps a descriptor, this does not."""
    with path.open("rb") as file:
        words = (None, ctypes.c_size_t(4096), 1, 1, file.fileno(), ctypes.c_long(0))
        return ctypes.c_void_p(LIBC.mmap(*words))


def test_shared_memory_counts_where_nobody_has_its_pages() -> None:
    before = total()
    with mmap.mmap(-1, 8 * MIB) as shared:
        shared.write(b"x" * (8 * MIB))
        shared.madvise(mmap.MADV_DONTNEED)  # no process has the pages now, but they are there
        assert total() - before == 8 * MIB
    assert total() == before


def total() -> int:
    return sum(nameless.look(*ME).shared.values())


def test_what_is_unmapped_in_part_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    # As for a user that may not ask how many pages a map has.
    monkeypatch.setattr(Path, "stat", refused)
    known = set(nameless.look(*ME).shared)
    shared_and_anonymous = 0x21
    words = (None, ctypes.c_size_t(2 * MIB), 3, shared_and_anonymous, -1, ctypes.c_long(0))
    address = ctypes.c_void_p(LIBC.mmap(*words))
    try:
        before = nameless.look(*ME).shared
        (inode,) = set(before) - known
        LIBC.munmap(ctypes.c_void_p(address.value + 4096), ctypes.c_size_t(2 * MIB - 4096))
        sizes = [nameless.look(*ME, (), given).shared[inode] for given in (before, None)]
    finally:
        LIBC.munmap(address, 4096)
    assert (before[inode], sizes) == (2 * MIB, [2 * MIB, 4096])


def refused(path: Path) -> os.stat_result:
    raise PermissionError(path)
