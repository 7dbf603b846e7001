"""The published way in torch gives the probabilities that the package gives from the same caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import psynth_jax as ps  # noqa: E402
from psynth_jax.bench import against_torch, torch_published  # noqa: E402
from psynth_jax.bench.question import Question, Writing  # noqa: E402
from psynth_jax.bench.torch_process import TorchRequest, measure, measure_apart  # noqa: E402
from psynth_jax.bench.torch_published import TorchBranch  # noqa: E402
from psynth_jax.errors import UserError  # noqa: E402
from psynth_jax.kv.pool import Lease  # noqa: E402
from psynth_jax.kv.transfer import read_slots  # noqa: E402
from tests.oracle import models, synthesis  # noqa: E402
from tests.tiny import tiny_config  # noqa: E402

pytestmark = pytest.mark.torch

LENGTHS, PREFIXES = (1, 7, 40, 13), (0, 11, 3, 17)


def _copied(branches: ps.Branches) -> list[TorchBranch]:
    """Take the branches' keys and values out of the package's caches."""
    found = []
    for branch in branches.questions[0]:
        (segment,) = branch.segments
        assert isinstance(segment.held, Lease)
        stored = read_slots(segment.held).arrays
        layers = []
        for keys, values in zip(stored["k"], stored["v"], strict=True):
            layers.append((torch.tensor(keys)[None], torch.tensor(values)[None]))
        found.append(TorchBranch(layers, branch.shift))
    return found


def _logprobs(synth: ps.ParallelSynthesis, prompt: list[int], branches: ps.Branches) -> np.ndarray:
    """Return the log-probability of every token after the prompt, `[V]`."""
    targets = [[token] for token in range(models.VOCAB_SIZE)]
    scores = synth.score([prompt] * len(targets), targets, [branches] * len(targets))
    return np.concatenate(scores)


@pytest.fixture(scope="module", params=["qwen3", pytest.param("llama_llama3_rope", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ps.Model]:
    torch_model = models.TINY[request.param]()
    directory = models.save(torch_model, tmp_path_factory.mktemp("tiny"))
    return torch_model, ps.load_model(str(directory))


def test_the_same_probabilities_from_the_same_caches(pair: tuple[Any, ps.Model]) -> None:
    torch_model, model = pair
    rng = np.random.default_rng(5)
    texts = [rng.integers(0, models.VOCAB_SIZE, length).tolist() for length in LENGTHS]
    prefixes = [rng.integers(0, models.VOCAB_SIZE, length).tolist() for length in PREFIXES]
    prompt = rng.integers(0, models.VOCAB_SIZE, 9).tolist()
    synth = ps.ParallelSynthesis(model)
    synth.set_mapper(synthesis.random_mapper(1))
    branches = synth.encode(texts, prefixes=prefixes)
    scalars = synth.mapper_scalars(branches)[:, 0].tolist()

    cache = torch_published.context(torch_model, _copied(branches), scalars)
    found = torch_published.read(torch_model, prompt, cache, max(LENGTHS)).log_softmax(-1).numpy()
    ours = _logprobs(synth, prompt, branches)
    assert np.ptp(ours) > 1, "probabilities that are all alike would compare nothing"
    np.testing.assert_allclose(found, ours, atol=1e-4, rtol=0)

    encoded = [torch_published.encode(torch_model, *both) for both in zip(texts, prefixes, strict=True)]
    cache = torch_published.context(torch_model, encoded, scalars)
    again = torch_published.read(torch_model, prompt, cache, max(LENGTHS)).log_softmax(-1).numpy()
    np.testing.assert_allclose(again, ours, atol=1e-4, rtol=0)


def test_random_weights_have_the_shape_of_the_config() -> None:
    config = tiny_config(width=24)
    model = against_torch.load_torch(config, "bfloat16")
    assert (model.config.num_hidden_layers, model.config.vocab_size) == (
        config.layers,
        config.vocab_size,
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.get_parameter("model.layers.0.mlp.gate_proj.weight").shape == (
        config.mlp_width,
        config.width,
    )


class TestRequest:
    REQUEST = TorchRequest(tiny_config(width=24), "float32", (Question(2, 5, 3),), 1, Writing(2, 3, 2))

    def test_it_is_the_same_after_json(self) -> None:
        assert TorchRequest.from_json(self.REQUEST.to_json()) == self.REQUEST

    def test_what_is_measured(self) -> None:
        seen: list[dict[str, Any]] = []
        found = measure(self.REQUEST, seen.append)
        (record,) = found["questions"]
        assert set(record) == {"question", "torch_repeats", "torch_text_s", "torch_published_s"}
        assert (record["question"], record["torch_repeats"]) == ("2x5", 1)
        assert found["torch_workers_s"] > 0 and len(seen) == 2

    @pytest.mark.slow
    def test_in_a_process_of_its_own(self) -> None:
        assert measure_apart(self.REQUEST)["questions"][0]["torch_text_s"] > 0

    @pytest.mark.slow
    def test_failure_is_one_line(self, tmp_path: Path) -> None:
        request = TorchRequest(str(tmp_path / "nothing"), "float32", (Question(1, 2, 2),), 1)
        with pytest.raises(UserError, match=r"torch could not be measured: .*nothing"):
            measure_apart(request)
