"""A user namespace for a program that shares its user with others, under Landlock.

The kernel limits the processes of a user.  From Linux 5.14 on it counts them for each user
namespace: in one of its own a program has the limit for itself.  Many machines allow no such
namespace; then the limit leaves room for others, and the supervisor's count is what holds.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from psynth_jax.sandbox import kernel

_COUNTED_SINCE = (5, 14)


def counts_processes() -> bool:
    """Whether this kernel counts the processes of a user namespace by themselves."""
    return kernel.version() >= _COUNTED_SINCE


@functools.cache
def available() -> bool:
    """Whether a process can enter one.  A child tries: there is no way back."""
    if not counts_processes():
        return False
    child = os.fork()
    if child == 0:
        code = 1
        try:
            enter()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return status == 0


def enter() -> None:
    """Move this process into a new user namespace, in which it has the ids that it had.

    It has all capabilities there, which it must give up.  Raises `OSError` where that is refused.
    """
    uid, gid = os.geteuid(), os.getegid()
    kernel.new_user_namespace()
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
