"""The few calls of the C library that Python's own modules do not have.

Each raises `OSError` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from psynth_jax.sandbox import syscalls

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 8, 38
_PR_SET_CHILD_SUBREAPER, _PR_CAP_AMBIENT = 36, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_CAPABILITY_VERSION = 0x20080522

_KCMP_VM = 1
_CLONE_NEWUSER = 0x10000000

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_KILL = 0, 1, 2, 5
CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE, CAP_SYS_ADMIN = 6, 7, 19, 21


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def prctl(option: int, first: int = 0, second: int = 0) -> None:
    """Call `prctl`."""
    words = [ctypes.c_ulong(value) for value in (first, second, 0, 0)]
    _checked(_libc.prctl(option, *words))


def syscall(number: int, *arguments: object) -> int:
    """Call a system call that the C library has no function for."""
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments))


def die_with_parent(signal_number: int, parent: int) -> None:
    """Have this process signalled when its parent dies.  Ends it now if `parent` is dead already.

    A change of user clears this, so that it comes after one.
    """
    prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def no_new_privileges() -> None:
    """Let no `execve` give this process more rights than it has."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def new_user_namespace() -> None:
    """Move this process, which has one thread, into a new user namespace."""
    _checked(_libc.unshare(_CLONE_NEWUSER))


def keep_capabilities_on_setuid() -> None:
    """Keep the permitted capabilities through the next change of user."""
    prctl(_PR_SET_KEEPCAPS, 1)


def set_capabilities(kept: int) -> None:
    """Leave this process, and what it executes, the capabilities of this mask and no others."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    low, high = kept & 0xFFFFFFFF, kept >> 32
    # effective, permitted, inheritable; of the lower 32 capabilities, then of the upper ones
    words = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    header = Header(_CAPABILITY_VERSION, 0)
    prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    _checked(_libc.capset(ctypes.byref(header), words))
    for capability in range(64):
        if kept >> capability & 1:
            prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, capability)


def capabilities() -> int:
    """Return the mask of this process's effective capabilities."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def has_capabilities(*wanted: int) -> bool:
    """Whether this process has all of these capabilities."""
    mask = capabilities()
    return all(mask >> capability & 1 for capability in wanted)


def version() -> tuple[int, int]:
    """Return the version of the kernel, as (6, 18)."""
    numbers = os.uname().release.split(".")
    minor = "".join(character for character in numbers[1] if character.isdigit())
    return int(numbers[0]), int(minor)


def have_one_memory(process: int, other: int) -> bool:
    """Whether two processes have the same memory; False where the kernel does not say."""
    number = syscalls.number("kcmp", platform.machine())
    try:
        words = [ctypes.c_ulong(word) for word in (process, other, _KCMP_VM, 0, 0)]
        return number is not None and syscall(number, *words) == 0
    except OSError:
        return False
