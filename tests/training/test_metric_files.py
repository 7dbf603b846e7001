"""The lines of a run: one file on a disk, parts in a bucket, read in the order of their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psynth_jax.errors import TrainingError
from psynth_jax.storage.client import BucketError
from psynth_jax.storage.paths import BucketPath
from psynth_jax.training import metric_files, metrics
from psynth_jax.training.config import Logging
from psynth_jax.training.curves import read_curves
from psynth_jax.training.metric_files import FILE, BucketLines
from psynth_jax.training.metrics import Metrics
from tests.storage.memory import MemoryStore

PLACE = BucketPath("gs://some-bucket/run")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    made = MemoryStore()
    made.install(monkeypatch)
    return made


def lines() -> list[int]:
    parts = [path.read_text() for path in PLACE.glob("metrics*.jsonl")]
    return [json.loads(line)["step"] for part in parts for line in part.splitlines()]


def write(begin: int | None, *steps: int) -> None:
    written = BucketLines(PLACE, begin)
    for step in steps:
        written.write({"step": step, "loss": float(step)})
    written.close()


def test_each_start_begins_a_part(store: MemoryStore) -> None:
    write(0, 1, 2)
    write(2, 3)
    assert [path.name for path in PLACE.glob("metrics*")] == ["metrics_00001.jsonl", "metrics_00002.jsonl"]
    assert lines() == [1, 2, 3]
    assert read_curves(PLACE / FILE)["loss"][0].tolist() == [1, 2, 3]


def test_steps_that_were_lost_are_removed(store: MemoryStore) -> None:
    write(0, 1, 2, 3)
    write(3, 4, 5)
    write(2, 3)
    assert lines() == [1, 2, 3]


def test_a_large_part_is_followed_by_another(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_files, "PART_BYTES", 100)
    written = BucketLines(PLACE, 0)
    for step in range(1, 40):
        written.write({"step": step})
        written.flush()
    written.close()
    parts = list(PLACE.glob("metrics*"))
    assert len(parts) > 3
    assert all(len(part.read_bytes()) < 150 for part in parts)
    assert lines() == list(range(1, 40))


def test_lines_are_there_after_a_flush(store: MemoryStore) -> None:
    written = BucketLines(PLACE, 0)
    written.write({"step": 1})
    assert lines() == []
    written.flush()
    assert lines() == [1]
    written.close()


def test_a_store_that_does_not_take_them_is_told(store: MemoryStore) -> None:
    store.fails.add(f"{PLACE}/metrics_00001.jsonl")
    written = BucketLines(PLACE, 0)
    written.write({"step": 1})
    with pytest.raises(BucketError):
        written.flush()
    store.fails.clear()
    written.close()
    assert lines() == [1], "what failed is tried again"


def test_a_run_that_was_taken_over_writes_nothing_more(store: MemoryStore) -> None:
    def taken() -> None:
        if lost:
            raise TrainingError("another run works here")

    lost = False
    written = BucketLines(PLACE, 0, taken)
    written.write({"step": 1})
    lost = True
    write(0, 1)
    with pytest.raises(TrainingError):
        written.close()
    assert lines() == [1]


def test_a_write_whose_answer_was_lost_is_known_again(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = BucketPath.write_bytes

    def loses(path: BucketPath, content: bytes, only_over: int | None = None) -> int:
        write_bytes(path, content, only_over)
        raise BucketError(5, "the bucket does not answer", str(path))

    written = BucketLines(PLACE, 0)
    written.write({"step": 1})
    monkeypatch.setattr(BucketPath, "write_bytes", loses)
    with pytest.raises(BucketError):
        written.flush()
    monkeypatch.setattr(BucketPath, "write_bytes", write_bytes)
    written.write({"step": 2})
    written.close()
    assert lines() == [1, 2]


def test_a_bucket_that_does_not_answer_between_two_saves_ends_nothing(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        if silent:
            raise BucketError(5, "the bucket does not answer", str(PLACE))

    silent = False
    monkeypatch.setattr(metric_files, "PAUSE", -1.0)
    written = BucketLines(PLACE, 0, check)
    silent = True
    for step in (1, 2, 3):
        written.write({"step": step})
        assert written._running is not None
        written._running.exception()  # when it has ended, the next line begins another one
    silent = False
    written.close()
    assert lines() == [1, 2, 3]


def test_parts_of_two_runs_do_not_replace_each_other(store: MemoryStore) -> None:
    """Without a check the condition of the write still holds them apart."""
    first, second = BucketLines(PLACE, 0), BucketLines(PLACE, 0)
    first.write({"step": 1})
    first.close()
    second.write({"step": 2})
    with pytest.raises(FileExistsError):
        second.close()
    assert lines() == [1]


def test_a_run_that_came_from_a_bucket_goes_on_in_its_last_part(tmp_path: Path) -> None:
    (tmp_path / "metrics_00001.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (tmp_path / "metrics_00002.jsonl").write_text('{"step": 2, "loss": 2.0}\n{"step')
    with Metrics(tmp_path, Logging(tensorboard=False)) as written:
        written.open({}, begin=2)
        written.write(3, {"loss": 3.0})
    assert not (tmp_path / FILE).exists()
    assert read_curves(tmp_path / FILE)["loss"][0].tolist() == [1, 2, 3]


def test_tensorboard_files_are_uploaded(store: MemoryStore) -> None:
    with Metrics(PLACE, Logging(tensorboard=True)) as written:
        written.open({}, begin=0)
        written.write(1, {"loss": 1.0})
        written.flush()
        written.write(2, {"loss": 1.0})
    (last,) = (PLACE / "tensorboard").files()
    assert (PLACE / "tensorboard" / last.name).read_bytes().count(b"loss") == 2


def test_tensorboard_files_are_uploaded_between_saves(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BOARD_PAUSE", -1.0)
    with Metrics(PLACE, Logging(tensorboard=True)) as written:
        written.open({}, begin=0)
        written.write(1, {"loss": 1.0})
        assert written._board is not None and written._board._running is not None
        written._board._running.result()
        assert len((PLACE / "tensorboard").files()) == 1  # tensorboardX may hold the line back for a while


def test_tensorboard_files_of_a_run_that_was_taken_over_stay_here(store: MemoryStore) -> None:
    def check() -> None:
        if lost:
            raise TrainingError("another run works here")

    lost = False
    written = Metrics(PLACE, Logging(tensorboard=True), check)
    written.open({}, begin=0)
    lost = True
    with pytest.raises(TrainingError):
        written.__exit__(None, None, None)
    assert (PLACE / "tensorboard").files() == []
