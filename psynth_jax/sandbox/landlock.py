"""Landlock: the files that a process may open, and the processes that it may signal.

A ruleset names rights, and the folders below which each is granted; everything else is denied.
Later versions of the kernel's interface know more rights:

    version 1   read, write, execute, make, remove
    version 2   rename and link between folders (before it: always denied)
    version 3   truncate
    version 4   TCP (seccomp denies all sockets)
    version 5   ioctl on devices (seccomp denies them)
    version 6   signals and abstract unix sockets that leave the domain
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Sequence

from psynth_jax.sandbox import kernel

LEAST_VERSION = 3  # without the right to truncate, a file that may be read could be emptied
SCOPES_VERSION = 6

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REGULAR, _MAKE_FIFO, _MAKE_LINK = 1 << 7, 1 << 8, 1 << 10, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_ALL_FILE_RIGHTS = (1 << 15) - 1  # those of version 3
_IOCTL_DEVICE = 1 << 15
_ALL_TCP = 0b11
_ALL_SCOPES = 0b11  # abstract unix sockets, signals

_FILES_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
READ = _EXECUTE | _READ_FILE | _READ_DIR
DEVICE = _READ_FILE | _WRITE_FILE
FOLDER = (
    _READ_FILE
    | _READ_DIR
    | _WRITE_FILE
    | _TRUNCATE
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REGULAR
    | _MAKE_FIFO
    | _MAKE_LINK
    | _REFER
)


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


def version() -> int:
    """Return the version of Landlock that this kernel has; 0 where it has none."""
    if sys.platform != "linux":
        return 0
    try:
        return _create(None, 0, _ASK_VERSION)
    except OSError:
        return 0


def _create(rules: object, size: int, flags: int) -> int:
    return kernel.syscall(_CREATE_RULESET, rules, ctypes.c_size_t(size), ctypes.c_uint32(flags))


def restrict(grants: Sequence[tuple[str, int]]) -> None:
    """Restrict this process to files below these paths, for good.  It needs `no_new_privs`.

    `grants` are pairs of a path and rights (`READ`, `DEVICE`, `FOLDER`); a path that is absent is
    left out.  Raises `OSError` where the kernel refuses.
    """
    known = version()
    rules = _Ruleset(_ALL_FILE_RIGHTS, 0, 0)
    size = 8
    if known >= 4:
        rules.tcp, size = _ALL_TCP, 16
    if known >= 5:
        rules.files |= _IOCTL_DEVICE
    if known >= SCOPES_VERSION:
        rules.scopes, size = _ALL_SCOPES, 24
    ruleset = _create(ctypes.byref(rules), size, 0)
    for path, rights in grants:
        _grant(ruleset, path, rights)
    kernel.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)


def _grant(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):  # noqa: PTH112  runs between fork and exec
            rights &= _FILES_ONLY  # the kernel refuses rights of folders for a file
        # struct landlock_path_beneath_attr, which is packed: the rights, then the descriptor
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, place), 12)
        kernel.syscall(
            _ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_uint32(_PATH_BENEATH),
            ctypes.byref(rule),
            ctypes.c_uint32(0),
        )
    finally:
        os.close(place)
