"""What bubblewrap starts: it becomes the user, sets the kernel's limits, and waits for the program.

bubblewrap itself tells an exit code of 139 and a signal 11 apart no more.  This process does: it
writes `started`, then the status that `waitpid` gave, on a descriptor that the program has not.

It runs as a script inside the sandbox, where nothing of this package is: only the standard library.

    launcher.py STATUS_FD UID|- RESOURCE:VALUE,... COMMAND...
"""

from __future__ import annotations

import os
import resource
import sys

TYPE_CHECKING = False  # each import here makes every start longer
if TYPE_CHECKING:
    from collections.abc import Mapping

STARTED = b"started "


def set_limits(limits: Mapping[int, int]) -> None:
    """Set the kernel's limits, soft and hard, of this process; one that is lower already stays."""
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))


def main() -> None:
    """Start the command, and say how it ended."""
    status, user, limits, *command = sys.argv[1:]
    report = int(status)
    os.write(report, STARTED)
    child = os.fork()
    if child == 0:
        os.close(report)
        _execute(user, limits, command)
    _, ended = os.waitpid(child, 0)
    os.write(report, str(ended).encode())


def _execute(user: str, limits: str, command: list[str]) -> None:
    if user != "-":
        uid = int(user)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.environ.pop("PWD", None)  # bubblewrap sets it
    os.umask(0o077)
    os.chdir(os.environ["HOME"])  # only the user may enter it
    pairs = (pair.split(":") for pair in limits.split(","))
    set_limits({int(kind): int(value) for kind, value in pairs})
    try:
        os.execv(command[0], command)
    finally:
        os._exit(127)


if __name__ == "__main__":
    main()
