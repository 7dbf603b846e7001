"""Runs whose workdir is in a bucket: killed in the middle of a save, resumed, compared with runs that were not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.errors import CheckpointError, TrainingError
from psynth_jax.storage.paths import AnyPath, BucketPath, as_path
from psynth_jax.training import owner
from psynth_jax.training.checkpoint import CheckpointReader
from psynth_jax.training.lock import working_in
from psynth_jax.training.report import report_train
from tests.processes import run_two
from tests.training.codes import codes, start
from tests.training.examples import config

ROOT = Path(__file__).parents[3]


def run(workdir: AnyPath, killed_at: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.extern.bucket.one_run", str(workdir), killed_at]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def completed(workdir: AnyPath) -> str:
    done = run(workdir)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def state_of(workdir: AnyPath, step: int) -> list[np.ndarray]:
    model = ps.load_model("tiny-random", layers="stacked")
    trainer = start(config(workdir, checkpoint={"every": 2, "keep": 9}), model, codes(model, 8))
    state, _ = CheckpointReader(workdir).restore(step, trainer.state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def lines(workdir: AnyPath) -> list[dict[str, Any]]:
    parts = sorted(workdir.glob("metrics*.jsonl"), key=str)
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not stopped, on this disk."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    completed(workdir)
    return workdir


def test_killed_in_a_save_and_resumed_it_is_bitwise_the_run_that_was_not(bucket: BucketPath, whole: Path) -> None:
    killed = run(bucket, "4")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    there = {each.name for each in bucket.files()}
    assert any(name.startswith("checkpoints/4/state/") for name in there), "the kill came before the save"
    assert "checkpoints/4/commit_success.txt" not in there
    assert CheckpointReader(bucket).steps == [2]

    said = completed(bucket)
    assert said.count("taking ") == 1 and "that process has ended" in said
    assert CheckpointReader(bucket).steps == CheckpointReader(whole).steps == [2, 4, 6]
    for step in (4, 6):
        for mine, other in zip(state_of(bucket, step), state_of(whole, step), strict=True):
            np.testing.assert_array_equal(mine, other)
    for name in ("adapter.safetensors", "mapper.safetensors"):
        assert (bucket / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()
    assert [line["step"] for line in lines(bucket)] == [1, 2, 3, 4, 5, 6], "each step once"
    expected = [line["loss"] for line in lines(whole)]
    assert [line["loss"] for line in lines(bucket)] == expected
    assert not (bucket / owner.FILE).exists()
    assert any(each.name.startswith("tensorboard/") for each in bucket.files())


def test_a_report_goes_next_to_the_run(bucket: BucketPath, whole: Path) -> None:
    copy(whole, bucket)
    found = report_train(str(bucket))
    assert found["steps"] == 6 and found["page"] == f"{bucket}/report/report.html"
    assert b"<svg" in (bucket / "report" / "report.html").read_bytes() or found["pictures"]
    assert report_train(bucket, bucket / "again")["final_loss"] == report_train(whole)["final_loss"]


def test_a_run_moves_between_a_disk_and_a_bucket(bucket: BucketPath, whole: Path, tmp_path: Path) -> None:
    """Checkpoints of either are read at the other place, checksums included."""
    copy(whole, bucket)
    for mine, other in zip(state_of(bucket, 6), state_of(whole, 6), strict=True):
        np.testing.assert_array_equal(mine, other)
    completed(bucket / "there")
    for each in (bucket / "there").files():
        file = tmp_path / "back" / each.name
        file.parent.mkdir(parents=True, exist_ok=True)
        (bucket / "there" / each.name).download(file)
    for mine, other in zip(state_of(tmp_path / "back", 6), state_of(whole, 6), strict=True):
        np.testing.assert_array_equal(mine, other)


def begin(workdir: BucketPath) -> None:
    with working_in(str(workdir)):
        pass


def copy(workdir: Path, target: BucketPath) -> None:
    for path in workdir.rglob("*"):
        if path.is_file() and path.name != ".lock":
            (target / path.relative_to(workdir).as_posix()).upload(path)


def test_a_damaged_checkpoint_names_the_last_whole_one(bucket: BucketPath, whole: Path) -> None:
    copy(whole, bucket)
    data = next(each.name for each in bucket.files() if each.name.startswith("checkpoints/6/state/d/"))
    content = (bucket / data).read_bytes()
    (bucket / data).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"is not as it was written; step 4 is whole: remove gs://"):
        state_of(bucket, 6)


def test_two_processes_share_a_run(bucket: BucketPath) -> None:
    """The second start goes on where the first ended: both processes see the same checkpoints."""
    module = "tests.extern.bucket.one_of_two"
    assert run_two(module, str(bucket), "2") == ["0 to 2"] * 2
    assert run_two(module, str(bucket), "4") == ["2 to 4"] * 2
    assert [line["step"] for line in lines(bucket)] == [1, 2, 3, 4]
    assert not (bucket / owner.FILE).exists()


class TestOwner:
    def test_two_runs_do_not_share_a_folder(self, bucket: BucketPath) -> None:
        with working_in(bucket), pytest.raises(TrainingError, match=r"another run \(pid \d+ on .*\) works in gs://"):
            begin(bucket)
        begin(bucket)
        assert not bucket.exists(), "a run that wrote nothing leaves nothing"

    def test_is_taken_over_after_three_minutes_without_a_sign(self, bucket: BucketPath) -> None:
        record = {"run": "x", "host": "another", "pid": 1, "heartbeat": 0.0}
        (bucket / owner.FILE).write_text(json.dumps(record))
        said: list[str] = []
        with working_in(bucket, said.append) as hold:
            hold.check()
        assert len(said) == 1 and "it has given no sign of life for" in said[0]

    def test_who_was_taken_over_stops(self, bucket: BucketPath) -> None:
        with working_in(bucket) as hold:
            (bucket / owner.FILE).write_text(json.dumps({"run": "other", "host": "h", "pid": 3}))
            with pytest.raises(TrainingError, match=r"was taken over by another run \(pid 3 on h\)"):
                hold.check()
        assert (bucket / owner.FILE).exists(), "the other's record stays"


def test_as_path_knows_what_pathlib_made_of_an_address() -> None:
    assert as_path(Path("gs://some-bucket/a/b")) == BucketPath("gs://some-bucket/a/b")
