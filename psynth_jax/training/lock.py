"""One run at a time works in a folder: two would write over each other.  Of a folder in a bucket see `owner`.

The kernel holds the lock for the process that opened WORKDIR/.lock, and lets go of it however that process ends.  The file
stays and says who was the last.  Of several processes only the first takes the lock; all of them learn how that went.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from psynth_jax.errors import ConfigError, TrainingError
from psynth_jax.files import refuse_special
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path
from psynth_jax.training.owner import owning

FILE = ".lock"
_LONGEST = 1024  # bytes of a message between processes
# What a file system says that has no locks: the run goes on without one.
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)

log = logging.getLogger("psynth_jax")


class Hold:
    """What a run has of its workdir while it works there.

    check: raises `TrainingError` when another run has taken over a folder in a bucket, where nothing can keep it from that;
    to be called before something is written.  A lock on a disk is not lost, and processes besides the first have none.
    """

    def __init__(self, check: Callable[[], None] | None = None):
        """Hold a folder.  check: None where it cannot be lost."""
        self._check = check

    def check(self) -> None:
        """Raise `TrainingError` when the folder is another run's."""
        if self._check is not None:
            self._check()

    def together(self, action: Callable[[], None]) -> None:
        """Do something in the first process only, and raise in all of them what it raises.

        Otherwise the others would wait for the first one, in a save, until the runtime aborts all.

        Raises `TrainingError`.
        """
        said = ""
        if jax.process_index() == 0:
            try:
                action()
            except (TrainingError, ConfigError) as error:
                said = str(error)
            except OSError as error:
                if jax.process_count() == 1:  # the caller says what a full disk means
                    raise
                said = f"the workdir cannot be written: {error.strerror or error}"
        if jax.process_count() > 1:
            said = _told_by_the_first(said)
        if said:
            raise TrainingError(said)


@contextlib.contextmanager
def working_in(workdir: str | AnyPath, say: Callable[[str], None] = lambda text: log.warning("%s", text)) -> Iterator[Hold]:
    """Make the folder, and hold its lock for the length of a block.

    Args:
      say: told when the folder is taken over from a run that has ended.

    Raises, in every process of the run:
      TrainingError: another run works there, or the folder cannot be written.
    """
    place = as_path(workdir)
    check: Callable[[], None] | None = None

    def take() -> None:
        nonlocal check
        if isinstance(place, BucketPath):
            check = stack.enter_context(owning(place, say))
        else:
            stack.enter_context(_locked(place))

    with contextlib.ExitStack() as stack:
        Hold().together(take)
        yield Hold(check)


def _told_by_the_first(said: str) -> str:
    """Return what the first process says."""
    content = np.zeros(_LONGEST, np.uint8)
    encoded = said.encode("utf-8", "backslashreplace")[:_LONGEST]
    content[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    shared = np.asarray(multihost_utils.broadcast_one_to_all(content)).astype(np.uint8)
    return shared.tobytes().rstrip(b"\0").decode("utf-8", "replace")


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    path = workdir / FILE
    try:
        was_there = workdir.exists()
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = _open(path)
    except OSError as error:
        raise TrainingError(f"{workdir} cannot be written: {error.strerror}") from None
    try:
        _take(descriptor, workdir)
        while not _is(path, descriptor):  # whoever had it before has removed it again, being refused
            os.close(descriptor)
            descriptor = _open(path)
            _take(descriptor, workdir)
        yield
        was_there = True
    finally:
        if not was_there:
            _remove_if_unused(workdir)
        os.close(descriptor)  # which lets go of the lock


def _open(path: Path) -> int:
    refuse_special(path, ConfigError)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _remove_if_unused(workdir: Path) -> None:
    """Leave nothing of a run that was refused before it wrote anything."""
    with contextlib.suppress(OSError):
        if [path.name for path in workdir.iterdir()] == [FILE]:
            (workdir / FILE).unlink()
            workdir.rmdir()


def _take(descriptor: int, workdir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            log.warning("%s: its file system has no locks; see to it that one run works there at a time", workdir)
            return
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise TrainingError(f"another run {_holder(descriptor)} works in {workdir}") from None
        raise TrainingError(f"{workdir} cannot be locked: {error.strerror}") from None
    with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _holder(descriptor: int) -> str:
    """Return what the lock's holder has written, which may be nothing yet."""
    try:
        said = os.pread(descriptor, 300, 0).decode("utf-8", "replace")
    except OSError:
        said = ""
    shown = "".join(letter for letter in said if letter.isprintable())
    return f"({shown})" if shown else "(of an unknown process)"
