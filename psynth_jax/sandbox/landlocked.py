"""Start a program under Landlock, seccomp and the kernel's limits.

Its process becomes the user, then gives up one right after the other, then executes Python:

    namespace, user, capabilities -> limits -> no_new_privs -> Landlock -> seccomp -> execve
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from psynth_jax.errors import SandboxError
from psynth_jax.sandbox import kernel, landlock, launcher, limits, namespace, runtime, seccomp, user
from psynth_jax.sandbox.run_parts import Run, Started, fork_into

NAME = "landlock"


def missing() -> str | None:
    """Return what this machine lacks for it, or None."""
    if seccomp.machine() is None:
        return seccomp.NO_FILTER
    known = landlock.version()
    if known == 0:
        return "the kernel has no Landlock; it needs Linux 6.2 or later with lsm=landlock,..."
    if known < landlock.LEAST_VERSION:
        least = landlock.LEAST_VERSION
        return f"the kernel has version {known} of Landlock; {least} is needed (Linux 6.2)"
    return None


def start(run: Run, stdout: int, stderr: int) -> Started:
    """Start the program of a run; it writes to the two pipes.

    Raises `SandboxError` where the kernel refuses a part.
    """
    if (lacks := missing()) is not None:
        raise SandboxError(lacks)
    supervisor = os.getpid()
    alone = not run.user.dropped and namespace.available()
    others = 0 if alone else user.tasks_beside(run.user)
    bounds = limits.resource_limits(run.job.limits, others)

    def body() -> NoReturn:
        if alone:
            namespace.enter()
        user.become(run.user)
        kernel.die_with_parent(signal.SIGKILL, supervisor)
        os.umask(0o077)
        os.chdir(run.folder.work)
        launcher.set_limits(bounds)
        _restrict(run)
        python = run.job.runtime.python
        command = runtime.command(run.job.runtime, str(run.folder.program))
        os.execve(python, command, runtime.environment(str(run.folder.work)))

    leader = fork_into(body, stdout, stderr)
    return Started(leader)


def policy(run: Run) -> seccomp.Policy:
    """Return what seccomp denies to this process, which is about to become the program."""
    scoped = landlock.version() >= landlock.SCOPES_VERSION
    alone = scoped or run.user.dropped  # a dropped user's signals reach nobody else's processes
    return seccomp.Policy(
        one_group=True,
        modes=not run.user.dropped,
        signals_only_to=None if alone else os.getpid(),
    )


def _restrict(run: Run) -> None:
    grants = [(path, landlock.READ) for path in runtime.SYSTEM_PATHS]
    grants += [(path, landlock.READ) for path in (run.job.runtime.python, *run.job.runtime.paths)]
    grants += [(path, landlock.DEVICE) for path in runtime.DEVICES]
    grants.append((str(run.folder.program), landlock.READ))
    grants.append((str(run.folder.work), landlock.FOLDER))
    filter_ = seccomp.build(policy(run))
    kernel.no_new_privileges()
    landlock.restrict(grants)
    seccomp.enforce(filter_)
