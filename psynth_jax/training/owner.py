"""One run at a time works in a folder of a bucket.  A bucket has no locks, so a record says whose it is.

    WORKDIR/owner.json    {"run": a name that no other start has, "host", "pid", ...: the process, "heartbeat": its time}

The owner writes the record again every `HEARTBEAT` seconds, and removes it at its end.  Another start takes it over when the
process is gone from this machine, or when there has been no heartbeat for `STALE` seconds.  Whether a run elsewhere is alive
is found by watching its record, unless its heartbeat is older than clocks can disagree (`CLOCKS` seconds).  Every write
names the generation that it replaces; a store that knows no such conditions is read again after a while.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from psynth_jax.errors import TrainingError
from psynth_jax.storage.paths import BucketPath
from psynth_jax.storage.process import life_of, named, this_process

FILE = "owner.json"
HEARTBEAT, STALE = 30.0, 180.0  # seconds
CLOCKS = 600.0  # seconds; a store takes no credentials of a host whose clock is off by as much
LOOK = 5.0  # seconds between two looks at the record of a run that may be alive
_SETTLED = 1.0  # seconds after which two starts that wrote at once both see the later record
_TRIES = 5
_AT_THE_END = 5.0  # seconds that a run which has been told to end still spends on its record
_log = logging.getLogger("psynth_jax")


@contextlib.contextmanager
def owning(workdir: BucketPath, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Own a folder for the length of a block.

    Yields a check, to be called before something is written: it looks at the record, and raises `TrainingError` when the
    folder is another run's, `OSError` when the bucket does not answer.

    Raises:
      TrainingError: another run works there, or the bucket cannot be written.
    """
    owner = _Owner(workdir, say)
    try:
        workdir.check_bucket()
        owner.take()
    except OSError as error:
        raise TrainingError(f"{workdir} cannot be written: {error.strerror}") from None
    beating = threading.Thread(target=owner.beat, name="owner of the workdir", daemon=True)
    beating.start()
    try:
        yield owner.check
    finally:
        owner.ended.set()
        beating.join(_AT_THE_END)
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
            if held is not None and held.get("run") != self._run:
                self._wait_until_free(held, generation)
            # An answer that was lost, and asked for again, finds this run's own record.
            with contextlib.suppress(FileExistsError):
                self._file.write_bytes(self._record(), only_over=generation)
            time.sleep(_SETTLED)
            if self._is_mine():
                return
        raise TrainingError(f"other runs are starting in {self._workdir}")

    def beat(self) -> None:
        """Renew the record until the run has ended, or is found to be another's."""
        last = time.monotonic()
        while not self.ended.wait(HEARTBEAT) and not self._lost:
            try:
                self._renew()
                last = time.monotonic()
            except Exception as error:  # noqa: BLE001 - a thread that ends in silence would lose the folder
                _log.warning("%s: no heartbeat could be written: %s", self._file, error)
                if time.monotonic() - last > STALE:
                    self._lost = f"no heartbeat could be written to {self._workdir} for {STALE:.0f} s"

    def check(self) -> None:
        """Raise `TrainingError` when the folder is no longer this run's, and `OSError` when that cannot be seen."""
        if not self._lost:
            self._note_other(self._read()[0])
        if self._lost:
            raise TrainingError(f"{self._lost}; this run has stopped, and its last checkpoint stays")

    def release(self) -> None:
        """Remove the record, if it is still this run's."""
        with contextlib.suppress(OSError):  # it is stale soon, or this process gone
            held, generation = self._read()
            if held is not None and held.get("run") == self._run:
                self._file.unlink(only_over=generation, patience=_AT_THE_END)

    def _renew(self) -> None:
        held, generation = self._read()
        self._note_other(held)
        if not self._lost:
            with contextlib.suppress(FileExistsError):  # the next beat sees whose it is
                self._file.write_bytes(self._record(), only_over=generation)

    def _note_other(self, held: Mapping[str, Any] | None) -> None:
        if held is None or held.get("run") != self._run:
            other = "nobody" if held is None else named(held)
            self._lost = f"{self._workdir} was taken over by another run ({other})"

    def _is_mine(self) -> bool:
        held, _ = self._read()
        return held is not None and held.get("run") == self._run

    def _record(self) -> bytes:
        record = {"run": self._run, **this_process(), "heartbeat": time.time()}
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

    def _wait_until_free(self, held: Mapping[str, Any], generation: int) -> None:
        """Return when the record may be taken over.  Raises `TrainingError` when its run is alive."""
        alive = f"another run ({named(held)}) works in {self._workdir}"
        beaten = held.get("heartbeat")
        if not isinstance(beaten, int | float):
            self._say(f"taking {self._workdir} over: its {FILE} is damaged")
            return
        life, age = life_of(held), time.time() - beaten
        if life == "gone":
            self._say(f"taking {self._workdir} over from {named(held)}: that process has ended")
            return
        if life == "alive" and age <= STALE:
            raise TrainingError(alive)
        if not age > STALE + (0.0 if life == "alive" else CLOCKS):  # a NaN is not
            # A run elsewhere whose clock is behind must have the time to show a heartbeat.
            seconds = max(STALE - age if age > 0 else STALE, 2 * HEARTBEAT + LOOK)
            self._say(f"{alive}, or has ended: watching it for up to {seconds:.0f} s ...")
            if not self._is_silent(generation, seconds, alive):
                return
        self._say(f"taking {self._workdir} over from {named(held)}: it has given no sign of life for {STALE:.0f} s")

    def _is_silent(self, generation: int, seconds: float, alive: str) -> bool:
        """Watch a record; return whether it has stayed as it is, and not been removed by its run.

        Raises `TrainingError` when it has changed.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(LOOK, max(end - time.monotonic(), 0.0)))
            held, now = self._read()
            if held is None:
                return False
            if now != generation:
                raise TrainingError(alive)
        return True
