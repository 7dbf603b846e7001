"""How a run ended."""

from __future__ import annotations

import dataclasses
from typing import Literal

KilledFor = Literal["time", "memory", "processes", "output", "files", "signal"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended, and what it wrote.

    Attributes:
        exit_code: what the program exited with; -N when signal N ended it; None when the sandbox
            killed it.
        timed_out: whether the sandbox killed it for its time.
        killed_for: the limit that it broke, and was killed for; "signal" when it died of a signal
            that it, or the kernel, sent; None when it ended by itself.
        stdout: decoded as UTF-8, with U+FFFD for bytes that are not.
        stderr: likewise.  Together they have at most `Limits.output` bytes.
        seconds: of wall time, from the start of the program to the end of its last process.
    """

    exit_code: int | None
    timed_out: bool
    killed_for: KilledFor | None
    stdout: str
    stderr: str
    seconds: float
