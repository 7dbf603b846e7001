"""A program that is over a limit is killed, and the outcome says for what."""

from __future__ import annotations

import os

import pytest

from psynth_jax.errors import InputError
from psynth_jax.sandbox import Limits
from tests.sandbox.actors import NAME_ME, Sandboxed, named

MIB = 1 << 20


def test_endless_loop(sandboxed: Sandboxed) -> None:
    outcome = sandboxed.run("print('begins', flush=True)\nwhile True: pass", seconds=0.25)
    assert (outcome.killed_for, outcome.timed_out, outcome.exit_code) == ("time", True, None)
    assert outcome.stdout == "begins\n"
    assert 0.25 <= outcome.seconds < 5


def test_signals_that_are_ignored(sandboxed: Sandboxed) -> None:
    program = """
import signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
time.sleep(60)
"""
    assert sandboxed.run(program, seconds=0.25).killed_for == "time"


def test_stopped_program(sandboxed: Sandboxed) -> None:
    program = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"
    assert sandboxed.run(program, seconds=0.25).killed_for == "time"


def test_closed_streams(sandboxed: Sandboxed) -> None:
    program = "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(60)"
    outcome = sandboxed.run(program, seconds=0.25)
    assert (outcome.killed_for, outcome.stdout, outcome.stderr) == ("time", "", "")


def test_fork_bomb(sandboxed: Sandboxed) -> None:
    token = f"bomb-{os.getpid()}"
    program = NAME_ME.replace("TOKEN", token) + (
        """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
    )
    outcome = sandboxed.run(program, seconds=5, processes=12)
    assert outcome.killed_for == "processes"
    assert named(token) == []


def test_fork_bomb_that_ends_between_two_looks_is_bounded(sandboxed: Sandboxed) -> None:
    program = """
import os
made = 0
for _ in range(400):
    try:
        if os.fork() == 0:
            os.read(0, 1)
            while True: pass
        made += 1
    except OSError:
        break
os.write(1, b"%d" % made)
"""
    outcome = sandboxed.run(program, seconds=5, processes=6)
    # 6, and the 8 that the kernel allows on top; the program itself is one
    bound = 13
    if (sandboxed.actor.who, sandboxed.backend) == ("user", "landlock"):
        bound += 256  # the kernel counts all processes of the user, and others need room
    assert int(outcome.stdout or 0) <= bound, outcome


def test_threads_are_counted(sandboxed: Sandboxed) -> None:
    program = """
import threading, time
for _ in range(15):
    threading.Thread(target=time.sleep, args=(30,)).start()
"""
    assert sandboxed.run(program, seconds=5, processes=10).killed_for == "processes"


@pytest.mark.slow
def test_orphans_that_have_ended_do_not_count(sandboxed: Sandboxed) -> None:
    program = """
import os, time
for _ in range(40):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.005)
        os._exit(0)
    os.wait()
    time.sleep(0.02)
print("done")
"""
    outcome = sandboxed.run(program, seconds=20, processes=20)
    assert (outcome.killed_for, outcome.stdout) == (None, "done\n"), outcome


def test_memory_of_one_process(sandboxed: Sandboxed) -> None:
    program = """
kept = []
while True:
    kept.append(b"x" * (1 << 20))
"""
    outcome = sandboxed.run(program, seconds=20, memory=80 * MIB)
    assert outcome.killed_for == "memory"


def test_memory_at_once_is_refused(sandboxed: Sandboxed) -> None:
    outcome = sandboxed.run("x = bytearray(8 << 30)", memory=80 * MIB)
    assert (outcome.exit_code, outcome.killed_for) == (1, None)
    assert outcome.stderr.splitlines()[-1] == "MemoryError"


def test_memory_of_many_processes(sandboxed: Sandboxed) -> None:
    program = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        kept = b"x" * (16 << 20)
        time.sleep(30)
time.sleep(30)
"""
    outcome = sandboxed.run(program, seconds=20, memory=100 * MIB, processes=12)
    assert outcome.killed_for == "memory"


def test_memory_that_processes_share_counts_once(sandboxed: Sandboxed) -> None:
    program = """
import os, time
kept = b"x" * (30 << 20)
for _ in range(6):
    if os.fork() == 0:
        time.sleep(0.3)
        os._exit(0)
for _ in range(6):
    os.wait()
print("done")
"""
    outcome = sandboxed.run(program, seconds=20, memory=140 * MIB)
    assert (outcome.killed_for, outcome.stdout) == (None, "done\n"), outcome


def test_memory_of_a_process_whose_first_thread_has_ended(sandboxed: Sandboxed) -> None:
    program = """
import ctypes, platform, threading, time
def fill():
    time.sleep(0.1)
    kept = [b"x" * (1 << 20) for _ in range(120)]
    time.sleep(30)
threading.Thread(target=fill).start()
exit_of_one_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
libc = ctypes.CDLL(None)  # it lets go of the interpreter while it calls
libc.syscall(exit_of_one_thread, 0)
"""
    assert sandboxed.run(program, seconds=20, memory=80 * MIB).killed_for == "memory"


@pytest.mark.slow
def test_child_that_borrows_the_memory_of_its_parent(sandboxed: Sandboxed) -> None:
    program = """
import subprocess, sys
kept = b"x" * (60 << 20)
for _ in range(20):
    subprocess.run([sys.executable, "-I", "-S", "-c", ""])
print("done")
"""
    outcome = sandboxed.run(program, seconds=30, memory=110 * MIB)
    assert (outcome.killed_for, outcome.stdout) == (None, "done\n")


def test_memory_in_shared_maps(sandboxed: Sandboxed) -> None:
    program = """
import mmap, time
kept = []
while True:
    shared = mmap.mmap(-1, 4 << 20)
    shared.write(b"x" * (4 << 20))
    kept.append(shared)
"""
    assert sandboxed.run(program, seconds=20, memory=80 * MIB).killed_for == "memory"


def test_memory_in_shared_maps_whose_pages_no_process_has(sandboxed: Sandboxed) -> None:
    program = """
import mmap, time
kept = []
for _ in range(30):
    shared = mmap.mmap(-1, 4 << 20)
    shared.write(b"x" * (4 << 20))
    shared.madvise(mmap.MADV_DONTNEED)
    kept.append(shared)
time.sleep(30)
"""
    assert sandboxed.run(program, seconds=20, memory=80 * MIB).killed_for == "memory"


def test_memory_of_many_processes_whose_first_threads_have_ended(sandboxed: Sandboxed) -> None:
    program = """
import ctypes, os, platform, threading, time
exit_of_one_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
libc = ctypes.CDLL(None)
def fill():
    kept = b"x" * (20 << 20)
    time.sleep(30)
for _ in range(6):
    if os.fork() == 0:
        threading.Thread(target=fill).start()
        libc.syscall(exit_of_one_thread, 0)
time.sleep(30)
"""
    outcome = sandboxed.run(program, seconds=20, memory=80 * MIB)
    assert outcome.killed_for == "memory"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output(sandboxed: Sandboxed, stream: str) -> None:
    program = f"import sys\nfor _ in range(10_000): sys.{stream}.write('x' * 1_000_000)"
    outcome = sandboxed.run(program, seconds=20, output=100_000)
    assert outcome.killed_for == "output"
    assert outcome.stdout + outcome.stderr == "x" * 100_000


def test_output_just_at_the_limit(sandboxed: Sandboxed) -> None:
    outcome = sandboxed.run("print('x' * 99_999)", output=100_000)
    assert (outcome.killed_for, outcome.exit_code, len(outcome.stdout)) == (None, 0, 100_000)


def test_one_large_file(sandboxed: Sandboxed) -> None:
    program = """
with open("large", "wb") as file:
    while True:
        file.write(b"x" * (1 << 20))
"""
    outcome = sandboxed.run(program, seconds=20, files=8 * MIB)
    assert outcome.killed_for == "files" or "File too large" in outcome.stderr


def test_sparse_file(sandboxed: Sandboxed) -> None:
    program = """
with open("sparse", "wb") as file:
    file.truncate(1 << 40)
"""
    outcome = sandboxed.run(program, files=8 * MIB)
    assert outcome.exit_code == 1
    assert "File too large" in outcome.stderr


def test_many_files(sandboxed: Sandboxed) -> None:
    program = """
import itertools, os
for number in itertools.count():
    os.close(os.open(f"{number}", os.O_CREAT))
"""
    assert sandboxed.run(program, seconds=20, files=2 * MIB).killed_for == "files"


def test_deleted_files(sandboxed: Sandboxed) -> None:
    program = """
import os, time
kept = []
for number in range(6):
    file = open("deleted", "wb")
    os.unlink("deleted")
    file.write(b"x" * (1 << 20))
    file.flush()
    kept.append(file)
time.sleep(30)
"""
    assert sandboxed.run(program, seconds=20, files=4 * MIB).killed_for == "files"


def test_deleted_files_of_a_thread_with_files_of_its_own(sandboxed: Sandboxed) -> None:
    program = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
memory_and_signals = 0x100 | 0x800 | 0x10000  # CLONE_VM, SIGHAND, THREAD; not FILES
held = []
for number in range(3):
    file = os.open("deleted", os.O_CREAT | os.O_RDWR)
    os.unlink("deleted")
    os.write(file, b"x" * (1 << 21))
    held.append(file)
sleep = ctypes.cast(libc.sleep, ctypes.c_void_p)
stack = ctypes.create_string_buffer(1 << 16)
top = ctypes.c_void_p((ctypes.addressof(stack) + (1 << 16) - 64) & ~15)
assert libc.clone(sleep, top, memory_and_signals, ctypes.c_void_p(30)) > 0
for file in held:
    os.close(file)
print("closed", flush=True)
time.sleep(30)
"""
    outcome = sandboxed.run(program, seconds=20, files=4 * MIB)
    assert (outcome.killed_for, outcome.stderr) == ("files", "")


def test_deleted_files_that_are_only_mapped(sandboxed: Sandboxed) -> None:
    program = """
import ctypes, os, time
libc = ctypes.CDLL(None)
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
for number in range(6):
    file = os.open("deleted", os.O_CREAT | os.O_RDWR)
    os.unlink("deleted")
    os.write(file, b"x" * (1 << 20))
    libc.mmap(None, 4096, 1, 1, file, 0)
    os.close(file)
time.sleep(30)
"""
    assert sandboxed.run(program, seconds=20, files=4 * MIB).killed_for == "files"


@pytest.mark.slow
def test_more_maps_than_one_can_look_at(sandboxed: Sandboxed) -> None:
    program = """
import mmap, time
kept = [mmap.mmap(-1, 4096, prot=mmap.PROT_READ << number % 2) for number in range(20_000)]
time.sleep(30)
"""
    assert sandboxed.run(program, seconds=20).killed_for == "files"


def test_reserved_blocks(sandboxed: Sandboxed) -> None:
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
file = os.open("reserved", os.O_CREAT | os.O_RDWR)
keep_size = 1
failed = libc.fallocate(file, keep_size, ctypes.c_long(0), ctypes.c_long(64 << 20))
print(failed, os.strerror(ctypes.get_errno()), os.fstat(file).st_blocks)
"""
    assert sandboxed.run(program, files=4 * MIB).stdout == "-1 Operation not supported 0\n"


@pytest.mark.slow
def test_program_that_cannot_be_looked_at(sandboxed: Sandboxed) -> None:
    program = """
import os, shutil, sys
shutil.copyfile(sys.executable, "python")
os.chmod("python", 0o111)
os.execv("python", ["python", "-I", "-S", "-c", "import time; time.sleep(30)"])
"""
    outcome = sandboxed.run(program, seconds=1.5)
    refused = "PermissionError" in outcome.stderr
    # A root that may trace everybody can look at it all the same.
    looked_at = outcome.killed_for == "time" and sandboxed.actor.who == "root"
    assert refused or looked_at or outcome.killed_for == "files", outcome


def test_files_that_are_left_at_the_end(sandboxed: Sandboxed) -> None:
    program = "for name in 'abcdef': open(name, 'wb').write(b'x' * (1 << 20))"
    outcome = sandboxed.run(program, files=4 * MIB)
    assert (outcome.killed_for, outcome.exit_code) == ("files", None)


def test_deep_folders_are_removed(sandboxed: Sandboxed) -> None:
    program = """
import os
for _ in range(1500):
    os.mkdir("d" * 40)
    os.chdir("d" * 40)
    open("f", "w").close()
print("done")
"""
    outcome = sandboxed.run(program)
    # Its path is longer than a path can be: it cannot be counted.
    assert outcome.killed_for == "files"
    assert sandboxed.run("print(2)").stdout == "2\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seconds": 0}, "seconds is 0; it must be a positive number"),
        ({"seconds": float("nan")}, "seconds is nan; it must be a positive number"),
        ({"seconds": "1"}, "seconds is '1'; it must be a positive number"),
        ({"memory": 1000}, "memory is 1000; it must be a whole number, at least 16777216"),
        ({"processes": 0}, "processes is 0; it must be a whole number, at least 1"),
        ({"output": 1.5}, "output is 1.5; it must be a whole number, at least 1"),
        ({"files": True}, "files is True; it must be a whole number, at least 1"),
    ],
)
def test_limits_that_say_nothing(given: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as raised:
        Limits(**given)  # type: ignore[arg-type]
    assert str(raised.value) == message
