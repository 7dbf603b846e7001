"""The adapter that comes with the package: it is there, belongs to its model, and reads what only a branch says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.convert.adapters import shipped_adapter

NAME = "smollm2-135m"
HOME = Path(ps.__file__).parent / "adapters" / NAME
REPORTS = [
    "Storage report: the disk of host db-2 filled up at 03:10, and the database could no longer write.",
    "Network report: all links are healthy. No packet loss was seen.",
    "Checkout report: the service failed from 03:12 on. Every order ended with 'database write failed'.",
]


def test_says_how_it_was_trained() -> None:
    described = json.loads((HOME / "psynth_adapter.json").read_text())
    training = described["training"]
    assert described["rank"] == 16 and described["base_name"] == NAME
    assert "seed" in training["config"] and training["steps"] == training["config"]["train"]["steps"]
    assert training["config"]["trainable"]["sink"] and described["sink"]
    assert all(len(source["sha256"]) == 64 and source["examples"] for source in training["data"])
    assert sum(path.stat().st_size for path in HOME.iterdir()) < 5e6


def test_other_models_have_none() -> None:
    assert shipped_adapter(ps.load_model("tiny-random")) is None


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> ps.Model:
    return ps.load_model(smollm2_path)


@pytest.mark.weights
class TestRealWeights:
    def test_is_found_by_the_weights(self, model: ps.Model) -> None:
        assert shipped_adapter(model) == HOME
        adapter = ps.load_adapter(NAME, model)
        assert adapter.lora is not None and adapter.mapper is not None
        assert {np.asarray(x).dtype.name for x in adapter.lora.down.values()} == {"bfloat16"}

    @pytest.mark.slow
    def test_answers_from_the_branches(self, model: ps.Model) -> None:
        """A question is answered from the branches, shortly, as it was trained to; the base does not do that."""
        question = "Why did the checkout service fail?"
        target = model.tokenizer.encode("The database could no longer write") if model.tokenizer else []
        scores = {}
        for name, adapter in (("adapter", NAME), ("base", None)):
            synth = ps.ParallelSynthesis(model, adapter=adapter)
            branches = synth.encode(REPORTS)
            scores[name] = synth.score(question, target, branches).sum()
            scores[name + " alone"] = synth.score(question, target).sum()
            scores[name + " without the first"] = synth.score(question, target, branches[[1, 2]]).sum()
        assert scores["adapter"] > max(value for name, value in scores.items() if name != "adapter") + 5
