"""What a program tries to read, write, reach or change outside, and what it is told."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from tests.sandbox.actors import ATTEMPTS, ROOT, Sandboxed


def test_program_has_no_network(sandboxed: Sandboxed) -> None:
    told = sandboxed.told(
        ATTEMPTS
        + """
pair = socket.socketpair()
other = socket.socketpair(type=socket.SOCK_STREAM)[0]
print(json.dumps({
    "tcp": attempt(socket.create_connection, ("127.0.0.1", 80)),
    "udp": attempt(socket.socket, socket.AF_INET, socket.SOCK_DGRAM),
    "tcp6": attempt(socket.socket, socket.AF_INET6),
    "raw": attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW),
    "unix": attempt(socket.socket, socket.AF_UNIX),
    "datagrams": attempt(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM),
    "bind": attempt(pair[0].bind, b"\\0name"),
    "connect": attempt(pair[0].connect, b"\\0name"),
    "send to": attempt(pair[0].sendto, b"x", b"\\0name"),
    "send a descriptor": attempt(socket.send_fds, pair[0], [b"x"], [0]),
    "pair": attempt(pair[0].sendall, b"x"),
}))
"""
    )
    allowed = {"pair": "done"}
    assert told == dict.fromkeys(told, "EPERM") | allowed
    assert len(told) == 11


def test_asyncio_and_subprocesses_work(sandboxed: Sandboxed) -> None:
    program = """
import asyncio, subprocess, sys, threading
async def answer():
    await asyncio.sleep(0.001)
    return "async"
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
print(asyncio.run(answer()), flush=True)
print(subprocess.run([sys.executable, "-I", "-c", "print('child')"], capture_output=True).stdout)
"""
    outcome = sandboxed.run(program)
    assert (outcome.exit_code, outcome.stdout) == (0, "thread\nasync\nb'child\\n'\n"), outcome


def test_files_are_copied_without_their_times(sandboxed: Sandboxed) -> None:
    program = """
import shutil
open("a", "w").write("x" * 100)
shutil.copyfile("a", "b")
print(open("b").read() == "x" * 100)
"""
    assert sandboxed.run(program).stdout == "True\n"


def test_files_outside_cannot_be_read(sandboxed: Sandboxed) -> None:
    home = sandboxed.actor.home / "secret"
    outside = ["/etc/passwd", "/etc/shadow", str(home), str(ROOT / "psynth_jax/errors.py"), "/root"]
    outside += ["/tmp", "/home", "/proc/self/environ", "/proc/self/mem", "/sys", "/dev/shm"]
    outside += [f"/proc/{os.getpid()}/environ", f"/proc/{sandboxed.actor.process.pid}/environ"]
    program = f"""
import json, os
seen = []
for path in {outside!r}:
    try:
        os.close(os.open(path, os.O_RDONLY))
        if not os.path.isdir(path):
            seen.append(path)
            continue
        seen += [path + "/" + name for name in os.listdir(path)]
    except OSError:
        pass
print(json.dumps(seen))
"""
    seen = sandboxed.told(program)
    # Under bubblewrap the folders on the way to Python and its packages can be listed, and have nothing else.
    above_python: set[str] = set()
    for python in (sys.base_prefix, sys.prefix):
        above_python |= {str(folder) for folder in Path(python).parents}
    assert set(seen) <= above_python, seen


def test_devices_that_do_no_harm_are_there(sandboxed: Sandboxed) -> None:
    program = """
import secrets
for name, size in (("zero", 3), ("random", 3), ("urandom", 3), ("null", 0)):
    with open("/dev/" + name, "rb") as file:
        assert len(file.read(3)) == size, name
open("/dev/null", "w").write("x")
print(len(secrets.token_bytes(4)))
"""
    assert sandboxed.run(program).stdout == "4\n"


def test_links_lead_nowhere(sandboxed: Sandboxed) -> None:
    told = sandboxed.told(
        ATTEMPTS
        + """
os.symlink("/etc/passwd", "file")
os.symlink("/etc", "folder")
os.symlink(os.path.join("/proc", "self", "root", "etc", "passwd"), "root")
print(json.dumps([
    attempt(open, "file"),
    attempt(open, "folder/passwd"),
    attempt(open, "root"),
    attempt(os.link, "/etc/passwd", "hard"),
    attempt(open, "../../../../../../etc/passwd"),
    attempt(os.rename, "../program.py", "mine.py"),
]))
"""
    )
    assert "done" not in told, told
    assert len(told) == 6


def test_nothing_outside_the_folder_can_be_written(sandboxed: Sandboxed, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    victim.chmod(0o666)
    open_ways = tmp_path.parents
    for folder in (tmp_path, *open_ways):
        if folder.stat().st_uid == os.geteuid() and "pytest" in str(folder):
            folder.chmod(0o777)
    places = ["/tmp/x", "/dev/shm/x", "/x", "/var/tmp/x", str(victim), str(tmp_path / "new")]
    places += ["../x", "../program.py", "/sandbox/x", "/sandbox/program.py", json.__file__]
    told = sandboxed.told(
        ATTEMPTS
        + f"""
places = {places!r}
print(json.dumps([[attempt(open, place, "w"), attempt(os.mkdir, place + ".d"),
    attempt(os.truncate, place, 0), attempt(os.unlink, place)] for place in places]))
"""
    )
    assert "done" not in [each for row in told for each in row], told
    assert victim.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [victim]


def test_modes_and_times_outside_cannot_be_changed(sandboxed: Sandboxed, tmp_path: Path) -> None:
    # A file of the user's own, which only its owner may change.
    home = Path(f"/tmp/psynth-test-{tmp_path.name}-{os.getpid()}")
    home.write_text("mine")
    home.chmod(0o644)
    try:
        if sandboxed.actor.who == "user" and os.geteuid() == 0:
            os.chown(home, 54_321, 54_321)
        before = home.stat()
        told = sandboxed.told(
            ATTEMPTS
            + f"""
path = {str(home)!r}
library = os.open(os.__file__, os.O_RDONLY)
print(json.dumps([
    attempt(os.chmod, path, 0o777),
    attempt(os.utime, path, (1, 1)),
    attempt(os.setxattr, path, "user.x", b"y"),
    attempt(os.chown, path, os.getuid(), os.getgid()),
    attempt(os.fchmod, library, 0o777),
    attempt(call, "fchmodat2", -100, path.encode(), 0o777, 0),
    attempt(os.utime, "/dev/null"),
]))
"""
        )
        assert "done" not in told, told
        after = home.stat()
        assert (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)
    finally:
        home.unlink()


def test_files_that_all_may_write_to_keep_times_and_attributes(sandboxed: Sandboxed) -> None:
    victim = Path(f"/tmp/psynth-test-open-{os.getpid()}")
    victim.mkdir()
    try:
        victim.chmod(0o777)
        (victim / "file").touch()
        (victim / "file").chmod(0o666)
        before = [path.stat().st_mtime_ns for path in (victim, victim / "file")]
        told = sandboxed.told(
            ATTEMPTS
            + f"""
folder = {str(victim)!r}
answers = []
for path in (folder, folder + "/file"):
    answers.append(attempt(os.utime, path))
    answers.append(attempt(os.setxattr, path, "user.x", b"y"))
    answers.append(attempt(os.removexattr, path, "user.x"))
print(json.dumps(answers))
"""
        )
        assert told == ["EPERM"] * 6
        assert [path.stat().st_mtime_ns for path in (victim, victim / "file")] == before
        assert [os.listxattr(path) for path in (victim, victim / "file")] == [[], []]
    finally:
        shutil.rmtree(victim)


def test_environment_and_descriptors_are_not_ours(sandboxed: Sandboxed) -> None:
    told = sandboxed.told(
        """
import json, os, sys
opened = []
for number in range(256):
    try:
        os.fstat(number)
        opened.append(number)
    except OSError:
        pass
print(json.dumps({
    "environment": dict(os.environ),
    "opened": opened,
    "stdin": sys.stdin.read(),
    "arguments": len(sys.argv),
    "folder": os.getcwd(),
    "listed": os.listdir("."),
    "isolated": sys.flags.isolated,
}))
"""
    )
    folder = told["folder"]
    assert told["environment"] == {
        "HOME": folder,
        "TMPDIR": folder,
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    assert told["opened"] == [0, 1, 2]
    assert (told["stdin"], told["arguments"], told["listed"], told["isolated"]) == ("", 1, [], 1)


def test_other_processes_cannot_be_reached(sandboxed: Sandboxed) -> None:
    victim = sandboxed.actor.process.pid
    told = sandboxed.told(
        ATTEMPTS
        + f"""
victim = {victim}
print(json.dumps([
    attempt(os.kill, victim, 9),
    attempt(os.kill, os.getppid() if os.getppid() > 2 else victim, 0),
    attempt(os.killpg, victim, 9),
    attempt(call, "ptrace", 16, victim, 0, 0),
    attempt(call, "process_vm_readv", victim, 0, 0, 0, 0, 0),
    attempt(call, "process_vm_writev", victim, 0, 0, 0, 0, 0),
    attempt(call, "kcmp", victim, victim, 0, 0, 0),
    attempt(call, "pidfd_getfd", 0, 0, 0),
    attempt(os.sched_setaffinity, victim, [0]),
    attempt(os.setpriority, os.PRIO_USER, 0, 19),
    attempt(os.setpriority, os.PRIO_PROCESS, victim, 19),
    attempt(call, "prlimit64", victim, 0, 0, 0),
    attempt(os.ptrace if hasattr(os, "ptrace") else call, "ptrace", 0, 0, 0, 0),
]))
"""
    )
    assert "done" not in told, told
    assert sandboxed.actor.process.poll() is None


def test_minus_one_signals_nobody_outside(sandboxed: Sandboxed) -> None:
    outcome = sandboxed.run("import os\ntry:\n    os.kill(-1, 9)\nexcept OSError: pass\nprint(1)")
    assert outcome.killed_for in (None, "signal")
    assert sandboxed.actor.process.poll() is None
    assert sandboxed.run("print(2)").stdout == "2\n"


def test_kernel_interfaces_are_denied(sandboxed: Sandboxed) -> None:
    told = sandboxed.told(
        ATTEMPTS
        + """
new_user, new_mounts = 0x10000000, 0x20000
print(json.dumps({
    "unshare": attempt(call, "unshare", new_user),
    "setns": attempt(call, "setns", 0, 0),
    "clone": attempt(call, "clone", new_user | 17, 0, 0, 0, 0),
    "clone mounts": attempt(call, "clone", new_mounts | 17, 0, 0, 0, 0),
    "mount": attempt(call, "mount", 0, 0, 0, 0, 0),
    "keyctl": attempt(call, "keyctl", 0, 0),
    "bpf": attempt(call, "bpf", 0, 0, 0),
    "perf": attempt(call, "perf_event_open", 0, 0, -1, -1, 0),
    "io_uring": attempt(call, "io_uring_setup", 1, 0),
    "userfaultfd": attempt(call, "userfaultfd", 0),
    "kexec": attempt(call, "kexec_load", 0, 0, 0, 0),
    "module": attempt(call, "init_module", 0, 0, 0),
    "personality": attempt(call, "personality", 0x0040000),
    "memfd": attempt(os.memfd_create, "x"),
    "handle": attempt(call, "open_by_handle_at", 0, 0, 0),
    "inotify": attempt(call, "inotify_init1", 0),
    "shmget": attempt(call, "shmget", 0, 4096, 0o1600),
    "dumpable": attempt(call, "prctl", 4, 0, 0, 0, 0),
    "no death with the parent": attempt(call, "prctl", 1, 0, 0, 0, 0),
    "attribute": attempt(os.setxattr, ".", "user.x", b"y"),
    "rules": attempt(call, "landlock_create_ruleset", (ctypes.c_uint64 * 2)(0, 3), 16, 0),
    "pages in pipes": attempt(call, "vmsplice", 1, 0, 0, 0),
    "sync": attempt(call, "sync"),
    "real time": attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
    "core": attempt(call, "prlimit64", 0, 4, (ctypes.c_uint64 * 2)(0, 0), 0),
}))
"""
    )
    assert told == dict.fromkeys(told, "EPERM")
    assert len(told) == 25


def test_newer_and_foreign_calls_do_not_exist(sandboxed: Sandboxed) -> None:
    told = sandboxed.told(
        ATTEMPTS
        + """
x32 = 0x40000000
asked = (numbers["clone3"], 463, 467, 500, x32, x32 + 41)
print(json.dumps([attempt(call, number) for number in asked]))
"""
    )
    assert told == ["ENOSYS"] * 6


def test_terminal_input_cannot_be_faked(sandboxed: Sandboxed) -> None:
    told = sandboxed.told(
        ATTEMPTS
        + """
import fcntl
print(json.dumps([
    attempt(fcntl.ioctl, 0, 0x5412, b"x"),
    attempt(fcntl.ioctl, 0, 0x541C, b"x"),
    attempt(call, "ioctl", 0, (1 << 32) | 0x5412, 0),
    attempt(os.open, "/dev/tty", os.O_RDWR) != "done",
]))
"""
    )
    assert told == ["ENOTTY"] * 3 + [True]


def test_limits_cannot_be_raised(sandboxed: Sandboxed) -> None:
    told = sandboxed.told(
        """
import json, resource
answers = []
for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
    soft, hard = resource.getrlimit(kind)
    try:
        resource.setrlimit(kind, (hard + 1, hard + 1))
        answers.append("raised")
    except ValueError:
        answers.append(soft == hard and hard > 0)
print(json.dumps(answers))
"""
    )
    assert told == [True, True, True]


def test_program_has_no_capabilities_and_cannot_get_any(sandboxed: Sandboxed) -> None:
    told = sandboxed.told(
        ATTEMPTS
        + """
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)()
libc.capget(header, data)
print(json.dumps({
    "root": 0 in os.getresuid() + os.getresgid(),
    "groups": os.getgroups(),
    "to root": attempt(os.setresuid, 0, 0, 0),
    "chroot": attempt(os.chroot, "."),
    "permitted": data[1] & ~(1 << 2) | data[4],
    "no new privileges": libc.prctl(39, 0, 0, 0, 0),
}))
"""
    )
    groups = told.pop("groups")
    assert set(groups) <= {65_534}  # what an id that is not mapped shows as
    assert told.pop("to root") in ("EPERM", "EINVAL")  # EINVAL: the namespace has no root
    assert told == {
        "root": False,
        "chroot": "EPERM",
        "permitted": 0,
        "no new privileges": 1,
    }
