"""One run at a time works in a folder of a bucket.  A bucket has no locks, so a record says whose it is.

    WORKDIR/owner.json    {"run": a name that no other start has, "host": "h", "pid": 7, "process": when that one began,
                           "heartbeat": seconds since 1970}

The owner writes the record again every `HEARTBEAT` seconds, and removes it at its end.  A record is taken over when its
process is gone from this host, or when it has had no heartbeat for `STALE` seconds; so clocks must agree to a minute or two.
Every write names the generation that it replaces.  A store that knows no such conditions is asked again after a while.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from psynth_jax.errors import TrainingError
from psynth_jax.storage.paths import BucketPath

FILE = "owner.json"
HEARTBEAT, STALE = 30.0, 180.0  # seconds
_SETTLED = 1.0  # seconds after which two starts that wrote at once both see the later record
_TRIES = 5
_log = logging.getLogger("psynth_jax")


@contextlib.contextmanager
def owning(workdir: BucketPath, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Own a folder for the length of a block.

    Yields a check, to be called before something is written: it raises `TrainingError` when another run has taken over.

    Raises:
      TrainingError: another run works there, or the bucket cannot be written.
    """
    owner = _Owner(workdir, say)
    try:
        owner.take()
    except OSError as error:
        raise TrainingError(f"{workdir} cannot be written: {error.strerror}") from None
    beating = threading.Thread(target=owner.beat, name="owner of the workdir", daemon=True)
    beating.start()
    try:
        yield owner.check
    finally:
        owner.ended.set()
        beating.join()
        owner.release()


class _Owner:
    def __init__(self, workdir: BucketPath, say: Callable[[str], None]):
        self._workdir, self._file, self._say = workdir, workdir / FILE, say
        self._run = secrets.token_hex(8)
        self._lost = ""
        self.ended = threading.Event()

    def take(self) -> None:
        """Write the record.  Raises `TrainingError` when another run is alive, and `OSError`."""
        for _ in range(_TRIES):
            held, generation = self._read()
            if held is not None:
                self._refuse_living(held)
            try:
                self._file.write_bytes(self._record(), only_over=generation)
            except FileExistsError:  # another start was faster: look at its record
                continue
            time.sleep(_SETTLED)
            if self._is_mine():
                return
        raise TrainingError(f"other runs are starting in {self._workdir}")

    def beat(self) -> None:
        """Renew the record until the run has ended, or is found to be another's."""
        last = time.monotonic()
        while not self.ended.wait(HEARTBEAT):
            try:
                self._renew()
                last = time.monotonic()
            except OSError as error:
                _log.warning("%s: no heartbeat could be written: %s", self._file, error.strerror)
                if time.monotonic() - last > STALE:
                    self._lost = f"no heartbeat could be written to {self._workdir} for {STALE:.0f} s"
            if self._lost:
                return

    def check(self) -> None:
        """Raise `TrainingError` when the folder is no longer this run's."""
        if self._lost:
            raise TrainingError(f"{self._lost}; this run has stopped, and its last checkpoint stays")

    def release(self) -> None:
        """Remove the record, if it is still this run's."""
        with contextlib.suppress(OSError):  # it is stale soon, or this process gone
            if self._is_mine():
                self._file.unlink()

    def _renew(self) -> None:
        held, generation = self._read()
        if held is None or held.get("run") != self._run:
            other = "nobody" if held is None else _named(held)
            self._lost = f"{self._workdir} was taken over by another run ({other})"
            return
        with contextlib.suppress(FileExistsError):  # the next beat sees whose it is
            self._file.write_bytes(self._record(), only_over=generation)

    def _is_mine(self) -> bool:
        held, _ = self._read()
        return held is not None and held.get("run") == self._run

    def _record(self) -> bytes:
        record = {
            "run": self._run,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": _began(os.getpid()),
            "heartbeat": time.time(),
        }
        return (json.dumps(record) + "\n").encode()

    def _read(self) -> tuple[Mapping[str, Any] | None, int]:
        """Return the record and its generation; None and 0: there is none."""
        content = None
        while content is None:
            try:
                content, generation = self._file.read_with_generation()
            except FileNotFoundError:
                return None, 0
            except FileExistsError:  # written meanwhile: read what is there now
                continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            record = {}
        return (record if isinstance(record, dict) else {}), generation

    def _refuse_living(self, held: Mapping[str, Any]) -> None:
        """Raise `TrainingError` when the record's run is alive; say else why it is taken over."""
        beaten = held.get("heartbeat")
        age = time.time() - beaten if isinstance(beaten, int | float) else STALE + 1
        if _is_gone(held):
            why = "that process has ended"
        elif age > STALE:
            why = f"it has given no sign of life for {age:.0f} s"
        else:
            raise TrainingError(
                f"another run ({_named(held)}) works in {self._workdir}; its last sign of life was {max(age, 0):.0f} s ago, "
                f"and it is taken over after {STALE:.0f} s without one"
            )
        self._say(f"taking {self._workdir} over from {_named(held)}: {why}")


def _named(held: Mapping[str, Any]) -> str:
    shown = f"pid {held.get('pid')} on {held.get('host')}"
    return "".join(letter for letter in shown if letter.isprintable())[:300]


def _is_gone(held: Mapping[str, Any]) -> bool:
    """Whether the record's process was one of this host and is no longer there."""
    pid = held.get("pid")
    if held.get("host") != socket.gethostname() or type(pid) is not int:
        return False
    began = _began(pid)
    if began is not None and held.get("process") is not None:
        return bool(began != held["process"])  # else another process has its number
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


def _began(pid: int) -> str | None:
    """Return what tells a process from all others that have had its number on this host; None: it is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{boot} {fields[19]}"  # starttime, the 22nd field, counted from the one behind the name
