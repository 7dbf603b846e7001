"""Which system calls a program of the sandbox may not make, as a seccomp filter.

Programs probe for what a kernel can do, so a denied call fails with an errno that says so and kills
nobody.  The list names what is denied.  Calls that are newer than the list fail with ENOSYS.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import platform
import sys

from psynth_jax.errors import SandboxError
from psynth_jax.sandbox import bpf, kernel, syscalls
from psynth_jax.sandbox.bpf import Rule, Test

# Sockets.  `socketpair` and `sendto` have tests below: asyncio wakes itself through such a pair.
# Without `sendmsg` no descriptor can travel, so that none hides an open file in a message;
# without `setsockopt` no buffer grows.
_SOCKETS = "socket connect bind listen accept accept4 sendmsg sendmmsg setsockopt"
_OTHER_PROCESSES = """
    ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise process_mrelease
    move_pages migrate_pages
"""
_MOUNTS = """
    mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree move_mount
    mount_setattr statmount listmount quotactl quotactl_fd swapon swapoff nfsservctl unshare
    setns
"""
_KERNEL = """
    add_key request_key keyctl bpf perf_event_open io_uring_setup io_uring_enter
    io_uring_register userfaultfd kexec_load kexec_file_load init_module finit_module
    delete_module create_module get_kernel_syms query_module reboot sethostname setdomainname
    iopl ioperm modify_ldt vhangup settimeofday clock_settime clock_adjtime adjtimex acct syslog
    mbind set_mempolicy_home_node lookup_dcookie uselib ustat sysfs _sysctl io_setup
    sync syncfs seccomp
"""
# Memory that belongs to no process, so that nobody would count it.  A pipe that got a page by
# `splice` or its kin holds all of a huge page; a rule of Landlock is the kernel's memory.
_HIDDEN_MEMORY = """
    memfd_create memfd_secret shmget shmat shmctl shmdt semget semop semctl semtimedop msgget
    msgsnd msgrcv msgctl mq_open mq_unlink splice vmsplice tee sendfile
    landlock_create_ruleset landlock_add_rule landlock_restrict_self
"""
# Watching files needs no right that Landlock knows; a handle names a file without its path.
_FILES = """
    inotify_init inotify_init1 inotify_add_watch fanotify_init fanotify_mark name_to_handle_at
    open_by_handle_at
"""
# Landlock does not know these, and whoever may write to a file may change them: /dev/null, too.
# An attribute takes room that nobody would count.
_ATTRIBUTES = """
    setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
    utime utimes futimesat utimensat
"""
# Landlock does not know these either: they would change files of the same user anywhere.
_MODES = "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat"
# All processes stay in one group, which one signal kills without a race.
_GROUPS = "setsid setpgid"

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
# TCGETS, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: what reads and sets nothing
# but the caller's own descriptors.
_IOCTLS = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_AF_UNIX, _SOCK_STREAM, _TYPE_MASK = 1, 1, 0xF
# PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_CAPBSET_READ, PR_SET_TIMERSLACK,
# PR_GET_TIMERSLACK, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_SVE_GET_VL, PR_SME_GET_VL: what
# threads, the C library and NumPy ask for.  Others would let a program outlive its supervisor, or
# keep it from looking: PR_SET_VMA gives shared maps another name.
_PRCTLS = (2, 3, 15, 16, 23, 29, 30, 38, 39, 51, 64)
_RLIMIT_CORE = 4
# F_SETOWN, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ
_FCNTLS = (8, 15, 1024, 1026, 1031)


NO_FILTER = "programs run on Linux on x86_64 or aarch64 only: there is no seccomp filter for others"


@dataclasses.dataclass(frozen=True)
class Policy:
    """What differs between back ends.

    Attributes:
        one_group: deny `setsid` and `setpgid`.
        modes: deny changes of modes and owners, everywhere.
        signals_only_to: the one process that may be signalled (it itself), or None for no rule.
    """

    one_group: bool = False
    modes: bool = False
    signals_only_to: int | None = None


def machine() -> str | None:
    """Return the architecture, `x86_64` or `aarch64`, or None where no filter is known."""
    name = platform.machine()
    known = sys.platform == "linux" and name in syscalls.AUDIT_ARCHITECTURES
    return name if known else None


def build(policy: Policy, architecture: str | None = None) -> bytes:
    """Return the filter for an architecture, or for this machine's: an array of `sock_filter`.

    Raises `SandboxError` where no filter is known for this machine.
    """
    architecture = architecture or machine()
    if architecture is None:
        raise SandboxError(NO_FILTER)
    rules: list[Rule] = []
    for name, tests in _conditions(policy).items():
        _add(rules, name, architecture, errno.EPERM, tests)
    _add(rules, "ioctl", architecture, errno.ENOTTY, (Test(1, "not in", _IOCTLS),))
    # Other modes reserve blocks beyond the size of a file, which has a limit.
    _add(rules, "fallocate", architecture, errno.EOPNOTSUPP, (Test(1, "not in", (0,)),))
    # glibc falls back to clone, whose flags a filter can see.
    _add(rules, "clone3", architecture, errno.ENOSYS)
    for name in _denied(policy).split():
        _add(rules, name, architecture, errno.EPERM)
    audit = syscalls.AUDIT_ARCHITECTURES[architecture]
    return bpf.assemble(audit, syscalls.LAST_KNOWN, errno.ENOSYS, rules)


def _add(
    rules: list[Rule],
    name: str,
    architecture: str,
    error: int,
    tests: tuple[Test, ...] = (),
) -> None:
    number = syscalls.number(name, architecture)
    if number is not None:
        rules.append(Rule(number, error, tests))


def _denied(policy: Policy) -> str:
    names = [_SOCKETS, _OTHER_PROCESSES, _MOUNTS, _KERNEL, _HIDDEN_MEMORY, _FILES, _ATTRIBUTES]
    if policy.one_group:
        names.append(_GROUPS)
    if policy.modes:
        names.append(_MODES)
    if policy.signals_only_to is not None:
        names.append("pidfd_send_signal")
    return " ".join(names)


def _conditions(policy: Policy) -> dict[str, tuple[Test, ...]]:
    """Return the calls that are denied for some arguments only."""
    of_another = (Test(0, "not in", (0,)),)  # 0 is the caller
    only_streams = (
        Test(0, "not in", (_AF_UNIX,)),
        Test(1, "not in", (_SOCK_STREAM,), _TYPE_MASK),
    )
    conditions: dict[str, tuple[Test, ...]] = {
        "clone": (Test(0, "not in", (0,), _NEW_NAMESPACES),),
        "socketpair": only_streams,
        "sendto": (Test(4, "pointer"),),
        "prctl": (Test(0, "not in", _PRCTLS),),
        "prlimit64": (*of_another, Test(1, "in", (_RLIMIT_CORE,))),
        "setrlimit": (Test(0, "in", (_RLIMIT_CORE,)),),
        "setpriority": (Test(0, "not in", (0,)), Test(1, "not in", (0,))),
        "ioprio_set": (Test(0, "not in", (1,)), Test(1, "not in", (0,))),
        "personality": (Test(0, "not in", (0xFFFFFFFF,)),),
        "fcntl": (Test(1, "in", _FCNTLS),),
        "sched_setaffinity": of_another,
        "sched_setattr": of_another,
        "sched_setparam": of_another,
        "sched_setscheduler": of_another,
    }
    if policy.signals_only_to is not None:
        own = policy.signals_only_to
        conditions["kill"] = (Test(0, "not in", (0, own)),)
        for name in ("tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
            conditions[name] = (Test(0, "not in", (own,)),)
    return conditions


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


def enforce(filter_: bytes) -> None:
    """Put this process under the filter, for good.  It needs `no_new_privs`.

    Raises `OSError` where the kernel has no seccomp filters.
    """
    program = _Program(len(filter_) // 8, filter_)
    kernel.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))
