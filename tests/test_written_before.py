"""What version 0.1.0 wrote is read as it was: models, branches, adapters, a stopped run and prepared data.

`fixtures/written_by_0.1.0.tar.gz` holds, of one tiny model with its tokenizer:

hf/, ours/                 the model as a Hugging Face directory (float32) and as one of ours
run.yaml, run/             a training run of 6 steps that was stopped after 4, with its adapter
peft/                      the same adapter in the published layout
branches/, branches-int8/  what workers wrote, their caches in float32 and in int8
prepared/                  prepared training data
expected.json              log-probabilities and fingerprints of that version
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.convert.load import open_model
from psynth_jax.data.shards import open_shards
from psynth_jax.training.config import read_config
from psynth_jax.training.tasks import load_tasks
from psynth_jax.training.trainer import Trainer

FILE = Path(__file__).parent / "fixtures" / "written_by_0.1.0.tar.gz"
DTYPES = ("float32", "bfloat16", "float16")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.03}
QUESTION, TARGET = "What failed?", "The disk."


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    with tarfile.open(FILE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(written: Path) -> dict[str, list[float]]:
    return json.loads((written / "expected.json").read_text())


@pytest.fixture(scope="module")
def models(written: Path) -> dict[str, ps.Model]:
    return {dtype: ps.load_model(written / "hf", dtype) for dtype in DTYPES}


def test_both_models_are_the_same_one(written: Path, models: dict[str, ps.Model]) -> None:
    ours = ps.load_model(written / "ours")
    found = [ps.ParallelSynthesis(model).score(QUESTION, TARGET) for model in (models["float32"], ours)]
    np.testing.assert_array_equal(*found)
    streamed = {open_model(written / name, dtype).fingerprint for name in ("hf", "ours") for dtype in (*DTYPES, None)}
    assert streamed == {model.fingerprint for model in models.values()} == {ours.fingerprint}


def test_fingerprints_of_then_are_accepted(written: Path, models: dict[str, ps.Model], expected: dict[str, str]) -> None:
    noted = [expected[name] for name in ("fingerprint", "fingerprint_bfloat16", "fingerprint_float16", "ours")]
    noted.append(json.loads((written / "ours" / "psynth_model.json").read_text())["fingerprint"])
    for model in [*models.values(), ps.load_model(written / "ours")]:
        assert all(model.identity.matches(digest) for digest in noted)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adapter", ["run/adapter", "peft"])
@pytest.mark.parametrize(("branches", "scores"), [("branches", "score"), ("branches-int8", "score_int8")])
def test_branches_and_adapters(
    branches: str,
    scores: str,
    adapter: str,
    dtype: str,
    written: Path,
    models: dict[str, ps.Model],
    expected: dict[str, list[float]],
) -> None:
    synth = ps.ParallelSynthesis(models[dtype], adapter=str(written / adapter))
    found = synth.score(QUESTION, TARGET, ps.Branches.load(written / branches))
    np.testing.assert_allclose(found, expected[scores], atol=TOLERANCE[dtype])


def test_branches_of_then_are_read_next_to_those_of_now(written: Path, models: dict[str, ps.Model]) -> None:
    synth = ps.ParallelSynthesis(models["float32"])
    old = ps.Branches.load(written / "branches")
    new = synth.encode(["The disk filled up at three."])
    both = ps.Branches.join(old, new)
    assert both.count == old.count + 1 and np.isfinite(synth.score(QUESTION, TARGET, both)).all()


@pytest.mark.slow
def test_a_stopped_run_goes_on(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hf", "run"):
        shutil.copytree(written / name, tmp_path / name)
    shutil.copyfile(written / "run.yaml", tmp_path / "run.yaml")
    monkeypatch.chdir(tmp_path)  # the run calls its model "hf"
    config = read_config(Path("run.yaml"), ("train.stop_at=null",))
    data, evaluation = load_tasks(config)
    trainer = Trainer(config, ps.load_model(config.model, config.dtype, layers="stacked"), data, evaluation)
    assert trainer.step == 4
    outcome = trainer.run()
    assert outcome.step == 6
    adapter = ps.load_adapter(outcome.adapter, ps.load_model("hf", "float16"))
    assert adapter.lora is not None and adapter.lora.rank == 2


def test_prepared_data_are_opened(written: Path, models: dict[str, ps.Model]) -> None:
    tokenizer = models["float32"].tokenizer
    assert tokenizer is not None
    shards = open_shards(written / "prepared", tokenizer.fingerprint)
    assert [shard.task for shard in shards] == sorted(path.name for path in (written / "prepared").iterdir())
    assert all(len(shard[0].target) > 0 for shard in shards)
