"""The filter, run by an interpreter for both architectures, and by the kernel in a process."""

from __future__ import annotations

import errno
import platform
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from psynth_jax.errors import SandboxError
from psynth_jax.sandbox import seccomp, syscalls
from psynth_jax.sandbox.bpf import ALLOW, KILL_PROCESS, fails_with
from psynth_jax.sandbox.seccomp import Policy
from tests.sandbox.actors import ROOT

MACHINES = ["x86_64", "aarch64"]
DENIED = fails_with(errno.EPERM)


def verdict(filter_: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Run a filter as the kernel would."""
    words = [each & (1 << 64) - 1 for each in (*arguments, 0, 0, 0, 0, 0, 0)][:6]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *words)
    program = list(struct.iter_unpack("<HBBI", filter_))
    accumulator = position = 0
    while True:
        code, if_true, if_false, constant = program[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif code == 0x54:
            accumulator &= constant
        elif code == 0x15:
            position += if_true if accumulator == constant else if_false
        elif code == 0x35:
            position += if_true if accumulator >= constant else if_false
        elif code == 0x05:
            position += constant
        else:
            assert code == 0x06
            return constant


class Filter:
    """A filter of an architecture, asked by the names of calls."""

    def __init__(self, machine: str, policy: Policy) -> None:
        self.machine = machine
        self.content = seccomp.build(policy, machine)

    def __call__(self, name: str, *arguments: int) -> int:
        number = syscalls.number(name, self.machine)
        assert number is not None
        return verdict(self.content, syscalls.AUDIT_ARCHITECTURES[self.machine], number, *arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_with_conditions(machine: str) -> None:
    asked = Filter(machine, Policy())
    assert asked("clone", 17) == ALLOW  # SIGCHLD: a fork
    assert asked("clone", 0x7D0F00) == ALLOW  # a thread
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert asked("clone", 17 | 1 << bit) == DENIED
    assert asked("clone3", 0) == fails_with(errno.ENOSYS)
    assert asked("socketpair", 1, 1 | 0o2000000) == ALLOW
    assert asked("socketpair", 1, 2) == DENIED
    assert asked("socketpair", 2, 1) == DENIED
    assert asked("sendto", 3, 1 << 40, 5, 0, 0) == ALLOW
    assert asked("sendto", 3, 0, 5, 0, 1 << 40) == DENIED
    assert asked("sendto", 3, 0, 5, 0, 1) == DENIED
    assert asked("prlimit64", 0, 7, 1 << 40) == ALLOW
    assert asked("prlimit64", 7, 7, 1 << 40) == DENIED
    assert asked("prlimit64", 0, 4, 1 << 40) == DENIED
    assert asked("personality", 0xFFFFFFFF) == ALLOW
    assert asked("personality", 0) == DENIED
    assert asked("setpriority", 0, 0, 5) == ALLOW
    assert asked("setpriority", 2, 0, 5) == DENIED
    assert asked("ioctl", 0, 0x5401) == ALLOW
    assert asked("ioctl", 0, 0x5412) == fails_with(errno.ENOTTY)
    assert asked("ioctl", 0, 1 << 32 | 0x5412) == fails_with(errno.ENOTTY)
    assert asked("fcntl", 0, 3) == ALLOW
    assert asked("fcntl", 0, 8) == DENIED
    for harmless in (15, 16, 39):  # PR_SET_NAME, PR_GET_NAME, PR_GET_NO_NEW_PRIVS
        assert asked("prctl", harmless) == ALLOW
    for denied in (1, 4, 22, 36, 0x53564D41):  # PR_SET_PDEATHSIG, PR_SET_DUMPABLE, ...
        assert asked("prctl", denied) == DENIED
    assert asked("fallocate", 3, 0) == ALLOW
    assert asked("fallocate", 3, 1) == fails_with(errno.EOPNOTSUPP)


@pytest.mark.parametrize("machine", MACHINES)
def test_policies_differ(machine: str) -> None:
    plain = Filter(machine, Policy())
    strict = Filter(machine, Policy(one_group=True, modes=True, signals_only_to=77))
    for name in ("setsid", "setpgid", "fchmod", "fchmodat2", "fchownat", "pidfd_send_signal"):
        assert (plain(name), strict(name)) == (ALLOW, DENIED), name
    assert (plain("kill", 5, 9), strict("kill", 5, 9)) == (ALLOW, DENIED)
    assert strict("kill", -1, 9) == DENIED
    for itself in (0, 77):
        assert strict("kill", itself, 9) == ALLOW
    for name in ("tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "tkill"):
        assert (strict(name, 77), strict(name, 5), strict(name, 0)) == (ALLOW, DENIED, DENIED)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_denied_whatever_its_arguments(machine: str) -> None:
    asked = Filter(machine, Policy())
    denied = {name for name in syscalls.NAMES if syscalls.number(name, machine) is not None}
    denied -= {*seccomp._conditions(Policy()), "ioctl", "clone3", "fallocate"}
    denied -= {*seccomp._MODES.split(), *seccomp._GROUPS.split(), "pidfd_send_signal"}
    denied -= {"kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"}
    assert {name for name in denied if asked(name) != DENIED} == set()
    assert {"ptrace", "mount", "bpf", "socket", "io_uring_setup", "memfd_create"} < denied
    assert {"fsetxattr", "utimensat", "vmsplice", "landlock_add_rule", "sync"} < denied


@pytest.mark.parametrize("machine", MACHINES)
def test_unknown_numbers_and_architectures(machine: str) -> None:
    content = seccomp.build(Policy(), machine)
    own = syscalls.AUDIT_ARCHITECTURES[machine]
    for number in (syscalls.LAST_KNOWN + 1, 0x40000000, 0x40000029, 0xFFFFFFFF):
        assert verdict(content, own, number) == fails_with(errno.ENOSYS)
    for foreign in (0x40000003, 0x40000028, 0):  # i386, arm, none
        assert verdict(content, foreign, 1) == KILL_PROCESS
    assert verdict(content, own, 62 if machine == "aarch64" else 0) == ALLOW  # lseek, read


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert seccomp.machine() is None
    with pytest.raises(SandboxError, match="x86_64 or aarch64 only"):
        seccomp.build(Policy())


def test_numbers_are_those_of_the_headers() -> None:
    headers = {
        "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        "aarch64": Path("/usr/include/asm-generic/unistd.h"),
    }
    if not all(header.exists() for header in headers.values()):
        pytest.skip("the headers of the kernel are not installed")
    for machine, header in headers.items():
        found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
        known = {name: int(number) for name, number in found}
        assert len(known) > 250
        for name in syscalls.NAMES:
            number = syscalls.number(name, machine)
            # The header may be older than the table.
            assert known.get(name, number) == number, name
            assert number is not None or name not in known, name


SIGNALS_ITSELF_ONLY = """
import os, sys
sys.path.insert(0, sys.argv[1])
from psynth_jax.sandbox import kernel, seccomp
kernel.no_new_privileges()
seccomp.enforce(seccomp.build(seccomp.Policy(signals_only_to=os.getpid())))
os.kill(os.getpid(), 0)
for action in (lambda: os.kill(os.getppid(), 0), lambda: os.kill(-1, 0)):
    try:
        action()
    except PermissionError:
        print("denied", flush=True)
os.abort()
"""


@pytest.mark.skipif(seccomp.machine() is None, reason="no seccomp filter for this machine")
def test_a_process_that_may_signal_itself_only() -> None:
    command = [sys.executable, "-I", "-S", "-c", SIGNALS_ITSELF_ONLY, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("denied\ndenied\n", -6), done.stderr
