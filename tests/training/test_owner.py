"""Who works in a folder of a bucket: one run at a time, and who has died is taken over."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest

from psynth_jax.errors import TrainingError
from psynth_jax.storage.paths import BucketPath
from psynth_jax.storage.process import life_of, this_process
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


def refuse(self: object, generation: int, seconds: float, alive: str) -> None:
    raise TrainingError(alive)


def leave(**changed: object) -> None:
    """Leave the record of another run."""
    record = {"run": "other", "host": "elsewhere", "pid": 7, "heartbeat": time.time()} | changed
    (PLACE / owner.FILE).write_text(json.dumps(record))


def begin(workdir: str | BucketPath) -> None:
    with working_in(workdir):
        pass


def test_a_second_run_is_refused_and_the_record_goes_at_the_end(store: MemoryStore) -> None:
    with working_in(PLACE), pytest.raises(TrainingError, match=r"another run \(pid \d+ on .*\) works in gs://"):
        begin(str(PLACE))
    assert PLACE.files() == []


def test_a_run_elsewhere_that_gives_signs_of_life_is_refused(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock may be wrong: what counts is that the record changes."""
    monkeypatch.setattr(owner, "LOOK", 0.0)
    leave(heartbeat=time.time() + 9e9)
    looked, looks = owner._Owner._read, 0

    def read(self: owner._Owner) -> object:
        nonlocal looks
        looks += 1
        if looks == 3:
            leave(heartbeat=time.time() + 9e9)
        return looked(self)

    monkeypatch.setattr(owner._Owner, "_read", read)
    with pytest.raises(TrainingError, match=r"another run \(pid 7 on elsewhere\) works in gs://"):
        begin(PLACE)


def test_a_run_elsewhere_without_a_sign_of_life_is_taken_over(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "LOOK", 0.01)
    said: list[str] = []
    leave(heartbeat=time.time() - owner.STALE - owner.CLOCKS - 5)
    with working_in(PLACE, said.append) as hold:
        hold.check()
    assert said == [f"taking {PLACE} over from pid 7 on elsewhere: it has given no sign of life for 180 s"]
    monkeypatch.setattr(owner, "HEARTBEAT", 0.1)
    leave(heartbeat=time.time() - owner.STALE + 0.2)
    with working_in(PLACE, said.append) as hold:
        hold.check()
    assert said[1].endswith("or has ended: watching it for up to 0 s ...") and said[2] == said[0]


def test_a_live_run_whose_clock_is_behind_is_not_taken_over(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[float] = []

    def watch(self: object, generation: int, seconds: float, alive: str) -> bool:
        watched.append(seconds)
        raise TrainingError(alive)

    monkeypatch.setattr(owner._Owner, "_is_silent", watch)
    for behind in (owner.STALE - 20, owner.STALE + 20, owner.STALE + owner.CLOCKS - 5):
        leave(heartbeat=time.time() - behind)
        with pytest.raises(TrainingError, match=r"another run \(pid 7 on elsewhere\)"):
            begin(PLACE)
    assert all(seconds >= 2 * owner.HEARTBEAT for seconds in watched), "time for a heartbeat, and one that is late"


def test_a_run_that_ends_while_it_is_watched_is_followed(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "LOOK", 0.0)
    leave()
    looked, looks = owner._Owner._read, 0

    def read(self: owner._Owner) -> object:
        nonlocal looks
        looks += 1
        if looks == 3:
            (PLACE / owner.FILE).unlink()
        return looked(self)

    monkeypatch.setattr(owner._Owner, "_read", read)
    said: list[str] = []
    with working_in(PLACE, said.append) as hold:
        hold.check()
    assert len(said) == 1 and "watching it" in said[0]


def test_a_process_of_this_machine_that_has_ended_is_taken_over_at_once(store: MemoryStore) -> None:
    code = "import json, psynth_jax.storage.process as p; print(json.dumps(p.this_process()))"
    ended = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    leave(**ended)
    said: list[str] = []
    with working_in(PLACE, said.append):
        pass
    host = socket.gethostname()
    assert said == [f"taking {PLACE} over from pid {ended['pid']} on {host}: that process has ended"]


def test_another_namespace_of_processes_is_another_machine() -> None:
    """Pods on one node may have equal host names, and pids that mean other processes."""
    here = this_process()
    assert life_of(here) == "alive"
    assert life_of(here | {"began": here["began"] + 1}) == "gone"
    assert life_of(here | {"place": "another boot pid:[1]", "began": 1}) == "unknown"
    assert life_of({}) == "unknown"


def test_an_answer_that_was_lost_does_not_make_a_run_refuse_itself(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, first = BucketPath.write_bytes, True

    def loses(path: BucketPath, content: bytes, only_over: int | None = None) -> int:
        nonlocal first
        generation = write(path, content, only_over)
        if first:
            first = False
            raise FileExistsError(17, "somebody else has written it meanwhile", str(path))
        return generation

    monkeypatch.setattr(BucketPath, "write_bytes", loses)
    with working_in(PLACE) as hold:
        hold.check()


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
    monkeypatch.setattr(owner._Owner, "_is_silent", refuse)
    with pytest.raises(TrainingError, match=r"another run \(pid 7 on elsewhere\)"):
        begin(PLACE)
    assert json.loads((PLACE / owner.FILE).read_text())["run"] == "other"


def test_who_was_taken_over_learns_of_it_and_leaves_the_record(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "HEARTBEAT", 0.01)
    with working_in(PLACE) as hold:
        leave()
        with pytest.raises(TrainingError, match=r"was taken over by another run \(pid 7 on elsewhere\)"):
            hold.check()
        with pytest.raises(TrainingError, match="was taken over"):
            hold.together(hold.check)
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
