"""A run by one call, as a notebook makes it: loaded here or given, continued, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import psynth_jax as ps
from psynth_jax.errors import ConfigError, TrainingError
from psynth_jax.training.config import TrainConfig
from psynth_jax.training.lock import working_in
from psynth_jax.training.start import train
from tests.training.codes import losses


def config(folder: Path, **changes: Any) -> TrainConfig:
    values = {
        "workdir": str(folder),
        "model": "tiny-random",
        "data": ({"synthetic": 8},),
        "trainable": {"rank": 4},
        "optimizer": {"schedule": "constant"},
        "batch": {"examples": 4, "shapes": 1, "branch_tokens": 700},
        "train": {"steps": 2},
        "logging": {"tensorboard": False},
    }
    return TrainConfig.parse(values | changes)


@pytest.fixture(scope="module")
def model() -> ps.Model:
    return ps.load_model("tiny-random", layers="stacked")


def test_a_model_that_is_given_trains_as_one_that_is_loaded(model: ps.Model, tmp_path: Path) -> None:
    outcomes = [train(config(tmp_path / "here")), train(config(tmp_path / "given"), model)]
    assert [(each.begin, each.step, each.reason) for each in outcomes] == [(0, 2, "done")] * 2
    assert losses(tmp_path / "here") == losses(tmp_path / "given") and len(losses(tmp_path / "here")) == 2
    assert outcomes[1].adapter == tmp_path / "given" / "adapter"
    ps.load_adapter(outcomes[1].adapter, model)


def test_goes_on_and_says_what_happens(model: ps.Model, tmp_path: Path) -> None:
    train(config(tmp_path, train={"steps": 1}), model)
    said: list[str] = []
    steps: list[int] = []
    longer = config(tmp_path, train={"steps": 3})
    outcome = train(longer, lambda: model, lambda step, _: steps.append(step), said.append)
    assert (outcome.begin, outcome.step) == (1, 3) and steps == [2, 3]
    assert f"continuing {tmp_path} after step 1" in said
    left_out = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["skipped"]
    assert left_out and any(f"{left_out} examples are left out: they have" in text for text in said)


def test_a_model_that_lies_otherwise_is_refused(model: ps.Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model is in float32, and the config says bfloat16"):
        train(config(tmp_path / "a", dtype="bfloat16"), model)
    with pytest.raises(ConfigError, match="the model's mesh is None, and the config says fsdp=2"):
        train(config(tmp_path / "a", mesh="fsdp=2"), model)
    assert not (tmp_path / "a").exists(), "nothing is left of a start that was refused"


def test_a_folder_in_which_a_run_works_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    def loads() -> ps.Model:
        pytest.fail("the model is loaded")

    with working_in(tmp_path), pytest.raises(TrainingError, match="another run"):
        train(config(tmp_path), loads)
