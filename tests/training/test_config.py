"""Configs: strict, overridable, and compared when a run is continued."""

from __future__ import annotations

from pathlib import Path

import pytest

from psynth_jax.errors import ConfigError
from psynth_jax.training.config import differences, read_config
from tests.processes import ROOT
from tests.training.examples import config

TEXT = """
workdir: runs/one
model: tiny-random
data:
  - synthetic: 8
optimizer: {learning_rate: 1e-3}
train: {steps: 4}
"""


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_those_that_come_along(path: Path) -> None:
    if path.stem != "compile_matrix":  # of another command
        assert read_config(path).train.steps >= 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    return path


def test_defaults_and_overrides(file: Path) -> None:
    found = read_config(file, ["train.steps=9", "optimizer.learning_rate=2e-5", "data.0.weight=0.5", "mesh=data=2"])
    assert (found.train.steps, found.optimizer.learning_rate, found.data[0].weight) == (9, 2e-5, 0.5)
    assert found.mesh == "data=2" and found.trainable.rank == 16


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.step=9"], "train.step: Extra inputs"),
        (["train.steps=many"], "train.steps: Input should be a valid integer"),
        (["train.steps=0"], "train.steps: Input should be greater"),
        (["train.steps=9", "train.steps=8"], "train.steps is given twice"),
        (["steps"], "'steps' is no override"),
        (["data.3.weight=1"], "nothing at data.3.weight"),
        (["model.name=x"], "nothing at model.name"),
        (["data.0.path=somewhere"], "either a path or a number"),
        (["data.0.cross_entropy=0"], "nothing would be learned"),
        (["trainable.mapper=false", "trainable.rank=0"], "nothing would be trained"),
        (["trainable.targets=[q, q]"], "each once"),
        (["reads=text"], "no branch to map"),
        (["teacher=text-adapter"], "would teach nothing"),
        (["reads=text", "trainable.mapper=false", "trainable.sink=true"], "no branch to stand after a sink"),
        (["train.steps=[1"], "not valid"),
        (["workdir=gs://bucket/run"], "mount the bucket"),
    ],
)
def test_wrong_values_are_named(file: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(file, overrides)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT + "model: other\n", "model is given twice"),
        ("- a list\n", "must hold keys and values"),
        ("workdir: [\n", "cannot read"),
        ("model: tiny-random\n", "workdir: Field required"),
    ],
)
def test_wrong_files_are_named(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_config(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_config(tmp_path / "none.yaml")


class TestDifferences:
    def test_what_decides_the_numbers_may_not_change(self) -> None:
        before = config("a")
        same = config("b", mesh="data=2", checkpoint={"every": 1}, remat=False)
        assert differences(same, before.model_dump(mode="json")) == []
        other = config("a", seed=1, batch={"tokens": 1})
        assert [item.partition(" ")[0] for item in differences(other, before.model_dump(mode="json"))] == ["seed", "batch"]

    def test_more_steps_need_a_constant_schedule(self) -> None:
        longer = config("a", train={"steps": 9})
        assert differences(longer, config("a").model_dump(mode="json")) == ["train.steps is 9, it was 6"]
        constant = {"schedule": "constant"}
        longer = config("a", train={"steps": 9}, optimizer=constant)
        assert differences(longer, config("a", optimizer=constant).model_dump(mode="json")) == []
