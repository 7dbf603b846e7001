"""The configs that come along: they are read, and those to be compared differ in nothing but what they compare."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import psynth_jax as ps
from psynth_jax.training.config import Task, TrainConfig, read_config
from psynth_jax.training.start import train
from tests.processes import ROOT

CONFIGS = ROOT / "configs"
OF_TRAINING = sorted(path for path in CONFIGS.rglob("*.yaml") if path.stem not in ("compile_matrix", "recipe-data"))
ABLATIONS = ("exposure", "aggregation", "distillation")

# What a config may have other than configs/recipe-branches.yaml.
DIFFER: Mapping[str, set[str]] = {
    "recipe-text": {"workdir", "reads", "trainable.mapper", "trainable.sink"},
    "ablation/exposure": {"workdir", "data"},
    "ablation/aggregation": {"workdir", "data"},
    "ablation/distillation": {"workdir", "data", "teacher"},
}


def config(name: str, *overrides: str) -> TrainConfig:
    return read_config(CONFIGS / f"{name}.yaml", overrides)


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return values by dotted path; a list is one value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{before}{name}.")
        else:
            found[before + name] = value
    return found


@pytest.mark.parametrize("path", OF_TRAINING, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_is_read(path: Path) -> None:
    found = read_config(path)
    assert found.train.steps >= 20
    assert all(task.synthetic for task in found.evaluation), "an evaluation that needs no data of the user's"


def test_workdirs_are_different() -> None:
    """A run would continue, or be refused by, another one's folder."""
    workdirs = [read_config(path).workdir for path in OF_TRAINING]
    assert len(set(workdirs)) == len(workdirs)


@pytest.mark.parametrize("name", DIFFER)
def test_what_is_compared_is_all_that_differs(name: str) -> None:
    recipe, other = flat(config("recipe-branches").model_dump()), flat(config(name).model_dump())
    assert recipe.keys() == other.keys()
    assert {key for key, value in recipe.items() if other[key] != value} == DIFFER[name]


class TestAblations:
    def tasks(self, name: str) -> tuple[Task, ...]:
        return config(f"ablation/{name}").data

    def test_have_one_objective_each(self) -> None:
        for name in ("exposure", "aggregation"):
            assert {(task.cross_entropy, task.distillation) for task in self.tasks(name)} == {(1.0, 0.0)}
        assert {(task.cross_entropy, task.distillation) for task in self.tasks("distillation")} == {(0.0, 1.0)}

    def test_distillation_is_on_the_mixture_of_the_recipe(self) -> None:
        learned = {"cross_entropy": 1.0, "distillation": 0.0}
        mixture = [task.model_copy(update=learned) for task in self.tasks("distillation")]
        assert tuple(mixture) == config("recipe-branches").data

    def test_exposure_and_aggregation_share_no_data(self) -> None:
        exposure, aggregation = self.tasks("exposure"), self.tasks("aggregation")
        recipe = config("recipe-branches").data
        assert not set(exposure) & set(aggregation)
        assert set(recipe) <= {*exposure, *aggregation}
        assert [task.kinds for task in {*exposure, *aggregation} - set(recipe)] == [("lookup", "quote")]

    def test_distillation_learns_from_the_text_recipe(self) -> None:
        assert config("ablation/distillation").teacher == f"{config('recipe-text').workdir}/adapter"


def short(name: str, folder: Path) -> TrainConfig:
    """Two steps of a config on a tiny model: its objectives, on generated questions alone."""
    task = config(name).data[0]
    objectives = f"cross_entropy: {task.cross_entropy}, distillation: {task.distillation}"
    return config(
        name,
        f"workdir={folder}",
        "model=tiny-random",
        "dtype=float32",
        "teacher=null",
        f"data=[{{synthetic: 8, {objectives}}}]",
        "evaluation=[]",
        "batch={tokens: 4096, examples: 2, shapes: 1, branch_tokens: 700}",
        "train={steps: 2}",
        "logging.tensorboard=false",
    )


@pytest.mark.slow
def test_ablations_are_trained_and_two_are_merged(tmp_path: Path) -> None:
    model = ps.load_model("tiny-random", layers="stacked")
    for name in ABLATIONS:
        outcome = train(short(f"ablation/{name}", tmp_path / name), model)
        assert (outcome.step, outcome.reason) == (2, "done")
        last = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        learned = "distillation" if name == "distillation" else "cross_entropy"
        assert last["loss"] == pytest.approx(last[learned])
    first, second = (tmp_path / name / "adapter" for name in ("aggregation", "distillation"))
    merged = tmp_path / "merged"
    command = [sys.executable, "-m", "psynth_jax", "merge", first, second, merged, "--base", "tiny-random"]
    subprocess.run(command, cwd=ROOT, check=True)
    made = ps.load_adapter(merged, model)
    assert made.lora is not None and made.mapper is not None and made.sink
    assert made.lora.rank == 32 and sorted(made.lora.down) == sorted(("q", "k", "v", "o", "gate", "up", "down"))


@pytest.mark.slow
def test_the_text_recipe_is_trained(tmp_path: Path) -> None:
    outcome = train(short("recipe-text", tmp_path / "text"), ps.load_model("tiny-random", layers="stacked"))
    assert (outcome.step, outcome.reason) == (2, "done")
