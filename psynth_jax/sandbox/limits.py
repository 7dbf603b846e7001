"""What a program may use, and the kernel's own limits that stand behind the supervisor's."""

from __future__ import annotations

import dataclasses
import math
import resource

from psynth_jax.errors import InputError, shown

_MEBIBYTE = 1 << 20
_SLACK_PROCESSES = 8
_SLACK_ADDRESSES = 512 * _MEBIBYTE
_SLACK_FILE = _MEBIBYTE
_OPEN_FILES = 128  # the buffers of as many sockets and pipes are memory that nobody counts
_PENDING_SIGNALS = 256
_LEAST_MEMORY = 16 * _MEBIBYTE  # a Python that does nothing has about 10


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one run may use, all its processes together.

    Attributes:
        seconds: of wall time.
        memory: bytes of resident and swapped memory.
        processes: processes and threads.
        output: bytes on stdout and stderr.
        files: bytes of the files in its folder, and of deleted ones that it still has open.  An
            entry counts as 4096 bytes at least.

    Raises `InputError` for a limit that is not positive, or so small that no Python starts.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    processes: int = 32
    output: int = 1 << 20
    files: int = 64 << 20

    def __post_init__(self) -> None:
        seconds: object = self.seconds
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not math.isfinite(self.seconds) or self.seconds <= 0:
            raise InputError(f"seconds is {shown(self.seconds)}; it must be a positive number")
        least = {"memory": _LEAST_MEMORY, "processes": 1, "output": 1, "files": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not smallest <= value < 1 << 62:
                needed = f"a whole number, at least {smallest}"
                raise InputError(f"{name} is {shown(value)}; it must be {needed}")


def resource_limits(limits: Limits, tasks_of_user: int) -> dict[int, int]:
    """Return the kernel's limits for a run: of each `RLIMIT_...` the value, soft and hard.

    They are a little wider than `limits`, so that the supervisor sees an excess, and can tell it,
    before the kernel answers with an error; and they hold between two of its looks.

    Args:
        limits: of the run.
        tasks_of_user: processes and threads that the kernel counts as well: those of the same
            user outside the run.
    """
    return {
        resource.RLIMIT_NPROC: limits.processes + _SLACK_PROCESSES + tasks_of_user,
        resource.RLIMIT_AS: limits.memory + _SLACK_ADDRESSES,
        resource.RLIMIT_FSIZE: limits.files + _SLACK_FILE,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_SIGPENDING: _PENDING_SIGNALS + tasks_of_user,
        # Not 0: with 0 the kernel still pipes a core into a program that core_pattern names.
        resource.RLIMIT_CORE: 1,
    }
