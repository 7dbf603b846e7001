"""SIGINT, SIGTERM and SIGHUP end a command in order: what is half written is removed, nothing is printed.

The handlers are installed before anything heavy is imported, so this module imports as little as can be.

A signal becomes an exception in the main thread.  There are three moments at which an exception would be lost:

    while a module is imported           libraries catch what their optional imports raise; a half-made module stays behind
    while another signal is cleaned up   the clean-up would be cut short
    in a callback of an extension        Python prints "Exception ignored in ...", and goes on

So at the first two a timer tries again a little later, and after every delivery the timer looks whether it was lost.
As long as a command has written nothing (`begin_to_write`), an import is no reason to wait: the process ends on the spot.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

HANGUP = getattr(signal, "SIGHUP", None)
_SIGNALS = tuple(each for each in (signal.SIGINT, signal.SIGTERM, HANGUP) if each is not None)
_RETRY_SECONDS, _LOST_SECONDS = 0.02, 1.0
_CLEAR_LINE, _SHOW_CURSOR = b"\r\x1b[2K", b"\x1b[?25h"
_IMPORT_MACHINERY = "<frozen importlib._bootstrap>"


class Ended(SystemExit):
    """A signal ended the command.  `number` is what a shell says of it: 128 and the signal's number."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class _Interruption:
    """The signal that ends this command: None until one comes."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.over = False
        self.writes = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal from the operating system."""
        if self.over:  # the command has ended and the interpreter is shutting down: nothing is left to clean up
            os._exit(128 + number)
        if self.number is None:
            self.number = number
        self.deliver(frame)

    def retry(self, _: int, frame: FrameType | None) -> None:
        """Look again whether the exception can be raised, or was lost."""
        if self.number is not None and not self.over:
            self.deliver(frame)

    def deliver(self, frame: FrameType | None) -> None:
        """Raise the exception of the signal, now or when the moment is right."""
        assert self.number is not None
        if _imports(frame) and not self.writes:
            _quit(128 + self.number)
        if _imports(frame) or _unwinds():
            signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
            return
        signal.setitimer(signal.ITIMER_REAL, _LOST_SECONDS)
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Ended(128 + self.number)


_interruption = _Interruption()


def install() -> None:
    """Let signals end the command.  SIGHUP stays ignored where it is: `nohup` wants that."""
    global _interruption
    _interruption = _Interruption()
    for each in _SIGNALS:
        if each == HANGUP and signal.getsignal(each) == signal.SIG_IGN:
            continue
        signal.signal(each, _interruption.handle)
    signal.signal(signal.SIGALRM, _interruption.retry)
    sys.unraisablehook = _quiet_about_signals


def begin_to_write() -> None:
    """Say that the command may have something half written from now on."""
    _interruption.writes = True


def exit_code(code: int) -> int:
    """Return the exit code of a command that has ended: that of a signal, if one came."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    _interruption.over = True
    code = code if _interruption.number is None else 128 + _interruption.number
    if _waits_for_ever():
        sys.stdout.flush()
        os._exit(code)
    return code


def _waits_for_ever() -> bool:
    """Whether a thread waits in C++ for processes that do not come: the interpreter could not end in order."""
    threading, distributed = sys.modules.get("threading"), sys.modules.get("psynth_jax.training.distributed")
    if threading is None or distributed is None:
        return False
    return any(thread.name == distributed.JOINING for thread in threading.enumerate())


def _quit(code: int) -> None:
    """End at once, and give a terminal its cursor back."""
    if os.isatty(2):
        os.write(2, _CLEAR_LINE + _SHOW_CURSOR)
    os._exit(code)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_MACHINERY:
            return True
        frame = frame.f_back
    return False


def _unwinds() -> bool:
    """Whether an exception of a signal is on its way up: `finally` blocks and context managers are at work."""
    error = sys.exception()
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt | Ended):
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def _quiet_about_signals(unraisable: Any) -> None:
    """Say nothing of a signal's exception that came in a callback; the timer raises it once more."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt | Ended):
        sys.__unraisablehook__(unraisable)
