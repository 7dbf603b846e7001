"""Start a program with bubblewrap: its own file tree, process ids, network and so on, and seccomp.

What the program sees:

    /lib /usr/lib ...        read only, as outside
    <Python's own paths>     read only, as outside
    /dev/null, zero, random  no /proc, no /sys, no /tmp, no /etc but two files of the C library
    /sandbox/program.py      read only
    /sandbox/launcher.py     read only
    /sandbox/folder          its folder

Three ways to start it:

    root with CAP_SYS_ADMIN      bubblewrap as root; the launcher becomes the unused user
    root without it              become the unused user, then as the next
    another user                 bubblewrap in a user namespace
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from psynth_jax.errors import SandboxError
from psynth_jax.sandbox import kernel, launcher, limits, namespace, runtime, seccomp, user
from psynth_jax.sandbox.run_parts import Run, Started, fork_into

NAME = "bubblewrap"

_PROGRAM, _LAUNCHER, _FOLDER = "/sandbox/program.py", "/sandbox/launcher.py", "/sandbox/folder"
_NOT_INSTALLED = "bwrap is not installed; install the package bubblewrap"
_OWN_TASKS = 3  # bubblewrap outside, bubblewrap as the first process inside, the launcher


def find() -> str | None:
    """Return the path of the executable, or None."""
    return shutil.which("bwrap")


def missing(executable: str | None) -> str | None:
    """Return what this machine lacks for it, or None.  Whether it works only a run shows."""
    if seccomp.machine() is None:
        return seccomp.NO_FILTER
    if executable is None:
        return _NOT_INSTALLED
    return None


def start(run: Run, stdout: int, stderr: int) -> Started:
    """Start the program of a run; it writes to the two pipes.

    Raises `SandboxError` where bubblewrap cannot be executed.
    """
    executable = run.job.bubblewrap
    if executable is None:
        raise SandboxError(_NOT_INSTALLED)
    supervisor = os.getpid()
    as_root = _works_as_root(run.user)
    status, report = os.pipe()
    filter_ = _filter_pipe()
    bounds = limits.resource_limits(run.job.limits, _tasks_of_user(run.user, as_root))
    command = [executable, *_options(run, as_root), "--seccomp", str(filter_), "--"]
    command += _launched(run, as_root, report, bounds)

    def body() -> NoReturn:
        if run.user.dropped and not as_root:
            user.become(run.user)
        kernel.die_with_parent(signal.SIGKILL, supervisor)
        # The launcher cannot: the filter, which denies changes of this limit, holds for it too.
        launcher.set_limits({resource.RLIMIT_CORE: bounds[resource.RLIMIT_CORE]})
        os.set_inheritable(report, True)
        os.set_inheritable(filter_, True)
        os.execve(executable, command, {})

    try:
        leader = fork_into(body, stdout, stderr)
    finally:
        os.close(report)
        os.close(filter_)
    return Started(leader, status, _OWN_TASKS)


def _works_as_root(chosen: user.User) -> bool:
    return chosen.dropped and kernel.has_capabilities(kernel.CAP_SYS_ADMIN)


def _filter_pipe() -> int:
    """Return a pipe that holds the seccomp filter."""
    reader, writer = os.pipe()
    os.write(writer, seccomp.build(seccomp.Policy()))  # 4 KiB: it fits
    os.close(writer)
    return reader


def _options(run: Run, as_root: bool) -> list[str]:
    options = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    options += ["--unshare-cgroup-try", "--die-with-parent", "--new-session"]
    if as_root:
        # The launcher needs these two once, and loses them with them.
        options += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        options.append("--unshare-user")
    options.append("--clearenv")
    for name, value in runtime.environment(_FOLDER).items():
        options += ["--setenv", name, value]
    options += _tree(run)
    # The tree itself is memory that nobody counts: nothing can be written to it.
    options += ["--remount-ro", "/", "--chdir", "/"]
    return options


def _tree(run: Run) -> list[str]:
    tree = _folders(run)
    for path in runtime.SYSTEM_PATHS:
        place = Path(path)
        if place.is_symlink() and place.parent == Path("/"):
            tree += ["--symlink", str(place.readlink()), path]  # /lib -> usr/lib
        else:
            tree += ["--ro-bind-try", path, path]
    for path in (run.job.runtime.python, *run.job.runtime.paths):
        tree += ["--ro-bind", path, path]
    for path in runtime.DEVICES:
        tree += ["--dev-bind-try", path, path]
    tree += ["--ro-bind", str(Path(launcher.__file__).resolve()), _LAUNCHER]
    tree += ["--ro-bind", str(run.folder.program), _PROGRAM]
    tree += ["--bind", str(run.folder.work), _FOLDER]
    return tree


def _folders(run: Run) -> list[str]:
    """Make the folders above all paths.  bubblewrap would make them for their owner alone."""
    job = run.job
    seen = [*runtime.SYSTEM_PATHS, *runtime.DEVICES, job.runtime.python, *job.runtime.paths]
    above: set[Path] = set()
    for path in (*seen, _FOLDER):
        above.update(Path(path).parents)
    made: list[str] = []
    for folder in sorted(above - {Path("/")}):
        made += ["--perms", "0755", "--dir", str(folder)]
    return made


def _launched(run: Run, as_root: bool, report: int, bounds: Mapping[int, int]) -> list[str]:
    """Return the command inside: the launcher, and what it starts."""
    pairs = []
    for kind, value in bounds.items():
        if kind != resource.RLIMIT_CORE:
            pairs.append(f"{kind}:{value}")
    becomes = str(run.user.uid) if as_root else "-"
    inner = [run.job.runtime.python, "-I", "-S", "-B", _LAUNCHER, str(report), becomes]
    return [*inner, ",".join(pairs), *runtime.command(run.job.runtime, _PROGRAM)]


def _tasks_of_user(chosen: user.User, as_root: bool) -> int:
    """Return how many tasks of ours, or of others, the kernel counts with the program's."""
    if as_root:
        return 0  # all of ours are root's
    if namespace.counts_processes():
        return _OWN_TASKS - 1  # all but the one outside
    return user.tasks_beside(chosen) + _OWN_TASKS
