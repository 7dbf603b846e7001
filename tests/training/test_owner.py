"""Who works in a folder of a bucket: one run at a time, and who has died is taken over."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from psynth_jax.errors import TrainingError
from psynth_jax.storage.paths import BucketPath
from psynth_jax.training import owner
from psynth_jax.training.lock import working_in
from tests.storage.memory import MemoryStore

PLACE = BucketPath("gs://some-bucket/run")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    made = MemoryStore()
    made.install(monkeypatch)
    monkeypatch.setattr(owner, "_SETTLED", 0.0)
    return made


def leave(**changed: object) -> None:
    """Leave the record of another run."""
    record = {"run": "other", "host": "elsewhere", "pid": 7, "process": "p", "heartbeat": time.time()} | changed
    (PLACE / owner.FILE).write_text(json.dumps(record))


def begin(workdir: str | BucketPath) -> None:
    with working_in(workdir):
        pass


def until_refused(check: Callable[[], None]) -> None:
    while True:
        check()
        time.sleep(0.01)


def test_a_second_run_is_refused_and_the_record_goes_at_the_end(store: MemoryStore) -> None:
    with working_in(PLACE), pytest.raises(TrainingError, match=r"another run \(pid \d+ on .*\) works in gs://"):
        begin(str(PLACE))
    assert PLACE.files() == []


def test_a_run_elsewhere_is_alive_for_three_minutes(store: MemoryStore) -> None:
    leave(heartbeat=time.time() - owner.STALE + 30)
    with pytest.raises(TrainingError, match=r"its last sign of life was 15[01] s ago, and it is taken over after 180 s"):
        begin(PLACE)
    leave(heartbeat=time.time() - owner.STALE - 5)
    said: list[str] = []
    with working_in(PLACE, said.append) as check:
        check()
    assert said == [f"taking {PLACE} over from pid 7 on elsewhere: it has given no sign of life for 185 s"]


@pytest.mark.parametrize("process", ["another boot 12", None])
def test_a_process_of_this_host_that_has_ended_is_taken_over_at_once(store: MemoryStore, process: str | None) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    leave(host=socket.gethostname(), pid=ended.pid, process=process)
    said: list[str] = []
    with working_in(PLACE, said.append):
        pass
    assert said == [f"taking {PLACE} over from pid {ended.pid} on {socket.gethostname()}: that process has ended"]


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'{"heartbeat": "x"}'])
def test_a_damaged_record_holds_nobody_up(store: MemoryStore, content: bytes) -> None:
    (PLACE / owner.FILE).write_bytes(content)
    with working_in(PLACE, lambda text: None):
        pass


def test_of_two_that_start_at_once_one_wins(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one writes between this one's look and its write: the condition fails, and the record is read again."""
    looked = owner._Owner._read
    first = True

    def read(self: owner._Owner) -> object:
        nonlocal first
        found = looked(self)
        if first:
            first = False
            leave()
        return found

    monkeypatch.setattr(owner._Owner, "_read", read)
    with pytest.raises(TrainingError, match=r"another run \(pid 7 on elsewhere\)"), working_in(PLACE):
        pass
    assert json.loads((PLACE / owner.FILE).read_text())["run"] == "other"


def test_who_was_taken_over_learns_of_it_and_leaves_the_record(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "HEARTBEAT", 0.01)
    with working_in(PLACE) as check:
        leave()
        with pytest.raises(TrainingError, match=r"was taken over by another run \(pid 7 on elsewhere\)"):
            until_refused(check)
    assert json.loads((PLACE / owner.FILE).read_text())["run"] == "other"


def test_the_record_is_renewed(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "HEARTBEAT", 0.01)
    with working_in(PLACE):
        first = json.loads((PLACE / owner.FILE).read_text())["heartbeat"]
        while json.loads((PLACE / owner.FILE).read_text())["heartbeat"] == first:
            time.sleep(0.01)


def test_a_store_that_cannot_be_written(store: MemoryStore) -> None:
    store.fails.add(str(PLACE / owner.FILE))
    with pytest.raises(TrainingError, match=f"{PLACE} cannot be written: not allowed"), working_in(PLACE):
        pass
