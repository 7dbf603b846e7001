"""Damaged checkpoints: every file of one removed, cut, emptied and flipped; each is named, with the step to go on from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

import psynth_jax as ps
from psynth_jax.data.example import ExampleList
from psynth_jax.errors import CheckpointError, InputError
from psynth_jax.training.checkpoint import CheckpointReader
from psynth_jax.training.checksums import FILE
from psynth_jax.training.config import TrainConfig
from psynth_jax.training.trainer import Trainer
from tests.training.codes import codes as make_codes
from tests.training.codes import start
from tests.training.examples import config


def run_config(workdir: object) -> TrainConfig:
    return config(
        workdir,
        train={"steps": 4, "evaluate_every": 2},
        checkpoint={"every": 2, "keep": 3},
        trainable={"rank": 2},
        evaluation=({"synthetic": 1},),
    )


@pytest.fixture(scope="module")
def model() -> ps.Model:
    return ps.load_model("tiny-random", layers="stacked")


@pytest.fixture(scope="module")
def codes(model: ps.Model) -> ExampleList:
    return make_codes(model, 8)


@pytest.fixture(scope="module")
def whole(model: ps.Model, codes: ExampleList, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints 2 and 4."""
    run = run_config(tmp_path_factory.mktemp("whole"))
    trainer = Trainer(run, model, [(run.data[0], codes)], [(run.evaluation[0], codes)])  # type: ignore[list-item]
    trainer.run()
    return trainer.workdir


@pytest.fixture
def workdir(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def remove(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def refused(workdir: Path, like: Trainer) -> str:
    """What a reader says that takes the last checkpoint as a run does."""

    def read() -> None:
        reader = CheckpointReader(workdir)
        reader.check_metrics()
        reader.about(4)
        reader.restore(4, like.state)

    with pytest.raises(CheckpointError) as error:
        read()
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500
    return str(error.value)


@pytest.fixture(scope="module")
def like(model: ps.Model, codes: ExampleList, whole: Path) -> Trainer:
    return start(run_config(whole), model, codes)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [remove, cut, empty, flip, fifo], ids=lambda damage: damage.__name__)
def test_every_file(
    damage: Callable[[Path], None], workdir: Path, whole: Path, like: Trainer, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = workdir / "checkpoints" / "4"
    names = [path.relative_to(checkpoint) for path in files_of(checkpoint)]
    assert len(names) > 15 and Path(FILE) in names
    for name in names:
        shutil.rmtree(checkpoint)
        shutil.copytree(whole / "checkpoints" / "4", checkpoint)
        damage(checkpoint / name)
        said = refused(workdir, like)
        assert said.startswith("checkpoint 4 cannot be read: "), name
        assert said.endswith(f"; step 2 is whole: remove {checkpoint} to go on there"), name
    assert capfd.readouterr().err == "", "nothing of an event loop"


def test_what_is_whole_is_looked_at(workdir: Path, like: Trainer) -> None:
    """Not every other checkpoint is one to go on from."""
    for step in ("2", "4"):
        flip(workdir / "checkpoints" / step / "data" / "metadata")
    assert refused(workdir, like).endswith(f"; no other one is whole: remove {workdir / 'checkpoints'} to begin again")


def test_a_folder_that_was_copied_by_half(workdir: Path, like: Trainer) -> None:
    checkpoint = workdir / "checkpoints" / "4"
    for name in ("state", "about", "data", "metrics"):
        shutil.rmtree(checkpoint / name)
        assert "step 2 is whole" in refused(workdir, like)
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    assert "step 2 is whole" in refused(workdir, like)
    checkpoint.rmdir()
    checkpoint.touch()
    assert "it is not a folder; step 2 is whole" in refused(workdir, like)


def test_a_checkpoint_under_another_number(workdir: Path, like: Trainer) -> None:
    shutil.rmtree(workdir / "checkpoints" / "4")
    shutil.copytree(workdir / "checkpoints" / "2", workdir / "checkpoints" / "4")
    assert "step 2 is whole" in refused(workdir, like)


@pytest.mark.slow
def test_a_run_names_an_older_one_that_is_damaged(model: ps.Model, codes: ExampleList, workdir: Path, like: Trainer) -> None:
    """Orbax reads the evaluation losses of all: the run says which cannot be read, and goes on when that is removed."""
    (workdir / "checkpoints" / "2" / "metrics" / "metrics").write_text("{")
    longer = run_config(workdir).model_copy(update={"train": like.config.train.model_copy(update={"steps": 5})})
    trainer = start(longer, model, codes)
    with pytest.raises(CheckpointError, match=r"checkpoint 2 cannot be read: .*; step 4 is whole: remove .*/2 to go on"):
        trainer.run()
    shutil.rmtree(workdir / "checkpoints" / "2")
    assert start(longer, model, codes).run().step == 5


class TestOfAnEarlierVersion:
    """It has no sums: what can be read is read, what Orbax says of the rest becomes one line."""

    @pytest.fixture
    def workdir(self, whole: Path, tmp_path: Path) -> Path:
        workdir = shutil.copytree(whole, tmp_path / "run")
        for step in ("2", "4"):
            (workdir / "checkpoints" / step / FILE).unlink()
            about = workdir / "checkpoints" / step / "about" / "metadata"
            about.write_text(about.read_text().replace(', "checksums": true', ""))
        return workdir

    def test_is_read(self, workdir: Path, like: Trainer) -> None:
        state, _ = CheckpointReader(workdir).restore(4, like.state)
        same = jax.tree.map(lambda one, other: bool((one == other).all()), state, like.state)
        assert all(jax.tree.leaves(same))

    @pytest.mark.parametrize(
        "name", ["about/metadata", "data/metadata", "metrics/metrics", "state/_METADATA", "state/manifest.ocdbt"]
    )
    @pytest.mark.parametrize("damage", [cut, empty, flip], ids=lambda damage: damage.__name__)
    def test_damaged(self, damage: Callable[[Path], None], name: str, workdir: Path, like: Trainer) -> None:
        damage(workdir / "checkpoints" / "4" / name)
        assert "; step 2 is whole: remove" in refused(workdir, like)


class TestFinding:
    @pytest.mark.parametrize("which", ["x", "-1", "1.0", "", "٣", "9" * 5000])
    def test_no_number(self, whole: Path, which: str) -> None:
        with pytest.raises(InputError, match="step must be latest, best or a whole number"):
            CheckpointReader(whole).find(which)

    def test_none_such(self, whole: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no checkpoint '99'; there are: 2, 4"):
            CheckpointReader(whole).find("99")
        with pytest.raises(InputError, match="there are: none"):
            CheckpointReader(tmp_path).find("latest")

    def test_by_name(self, whole: Path) -> None:
        reader = CheckpointReader(whole)
        assert (reader.find("latest"), reader.find("2"), reader.find("best")) == (4, 2, reader.best)


def test_reading_changes_nothing(workdir: Path, like: Trainer, codes: ExampleList, model: ps.Model) -> None:
    """A run that is at work may be exported: what it has half written stays."""
    half = workdir / "checkpoints" / "6.orbax-checkpoint-tmp"
    half.mkdir()
    before = sorted(workdir.rglob("*"))
    trainer = start(run_config(workdir), model, codes)
    trainer.export(workdir.parent / "adapter")
    assert sorted(workdir.rglob("*")) == before
