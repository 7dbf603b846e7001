"""A run that version 0.1.0 left at step 4 of 6: it is continued, extended and exported."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from psynth_jax.convert.load import load_model
from psynth_jax.training.config import read_config, read_run_config
from psynth_jax.training.curves import read_curves
from psynth_jax.training.tasks import load_tasks
from psynth_jax.training.trainer import Trainer

FILES = Path(__file__).parents[1] / "fixtures" / "written_by_0.1.0.tar.gz"


@pytest.fixture
def _beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="tokenizers are transformers'")
    with tarfile.open(FILES) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_beside_it")
def test_it_goes_on() -> None:
    """Its schedule is of the 6 steps that it began with, though it has no record of that."""
    assert read_run_config("run").train.steps == 6
    settings = read_config("run.yaml", ["train.steps=7", "train.stop_at=7"])
    model = load_model("hf", layers="stacked")
    trainer = Trainer(settings, model, *load_tasks(settings))
    assert (trainer.step, trainer.config.optimizer.schedule_steps) == (4, 6)
    assert trainer.run().step == 7
    curves = read_curves(Path("run/metrics.jsonl"))
    steps, rates = curves["learning_rate"]
    assert steps.tolist() == [1, 2, 3, 4, 5, 6, 7] and rates[6] == pytest.approx(1e-3)
    assert np.isfinite(curves["loss"][1]).all()
    summary = json.loads(Path("run/adapter/psynth_adapter.json").read_text())["training"]
    assert summary["steps"] == 7 and summary["config"]["optimizer"]["schedule_steps"] == 6
