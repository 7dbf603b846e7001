"""What is converted is the same model to transformers: its own classes load it and compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: transformers runs on it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: it loads what was converted")

import psynth_jax as ps  # noqa: E402
from psynth_jax.convert.convert import convert  # noqa: E402
from psynth_jax.nn.adapter import Lora, targets_of  # noqa: E402
from tests.convert.test_convert import same, tensors_of  # noqa: E402
from tests.oracle import models, synthesis  # noqa: E402

pytestmark = pytest.mark.torch

IDS = [5, 1, 80, 3, 44, 2]


def logits(source: Any, ids: list[int] = IDS) -> np.ndarray:
    model = source
    if isinstance(source, Path):
        plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **plain)
    with torch.no_grad():
        return np.asarray(model.eval()(torch.tensor([ids])).logits[0])


@pytest.mark.parametrize("family", list(models.TINY))
def test_there_and_back(family: str, tmp_path: Path) -> None:
    source = models.save(models.TINY[family](), tmp_path / "source")
    convert(source, tmp_path / "ours", "psynth")
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    assert same(tensors_of(tmp_path / "back"), tensors_of(source))
    assert np.array_equal(logits(tmp_path / "back"), logits(source))


@pytest.mark.parametrize("family", list(models.TINY))
def test_a_config_of_ours_is_theirs(family: str, tmp_path: Path) -> None:
    """From a source without a config.json of its own, the one that is written describes the same model."""
    from psynth_jax.convert.safetensors_file import write_json
    from psynth_jax.convert.write_hf import config_to_hf

    torch_model = models.TINY[family]()
    source = models.save(torch_model, tmp_path / "source")
    write_json(source / "config.json", config_to_hf(ps.load_model(source).config))
    np.testing.assert_allclose(logits(source), logits(torch_model), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "qwen3", "qwen3_moe", "gemma3"])
def test_merged(family: str, tmp_path: Path) -> None:
    torch_model = models.TINY[family]()
    source = models.save(torch_model, tmp_path / "source")
    model = ps.load_model(source)
    drawn = synthesis.random_lora(torch_model, 4, 6, targets=targets_of(model.config))
    shapes = Lora.initialise(model.config, 6, 1.0, jax.random.key(0), tuple(drawn.matrices))
    down = {t: a.reshape(shapes.down[t].shape) for t, (a, _) in drawn.matrices.items()}
    up = {t: b.reshape(shapes.up[t].shape) for t, (_, b) in drawn.matrices.items()}
    ps.save_adapter(tmp_path / "adapter", ps.Adapter(Lora(down, up, np.float32(drawn.scale)), None), model)
    convert(tmp_path / "adapter", tmp_path / "merged", "hf", merge=True, base=source)
    with synthesis.applied(torch_model, drawn):
        expected = logits(torch_model)
    np.testing.assert_allclose(logits(tmp_path / "merged"), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.weights
def test_real_weights(smollm2_path: Path, tmp_path: Path) -> None:
    """GGUF -> Hugging Face -> ours -> Hugging Face: the same bits, and transformers computes what we do."""
    convert(smollm2_path, tmp_path / "hf", "hf")
    convert(tmp_path / "hf", tmp_path / "ours", "psynth")
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    assert same(tensors_of(tmp_path / "back"), tensors_of(tmp_path / "hf"))
    ids = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47]
    theirs = torch.log_softmax(torch.from_numpy(logits(tmp_path / "back", ids)), dim=-1).numpy()
    ours = ps.ParallelSynthesis(ps.load_model(tmp_path / "ours")).score(ids[:3], ids[3:])
    np.testing.assert_allclose(ours, theirs[np.arange(2, len(ids) - 1), ids[3:]], atol=1e-3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer.decode(tokenizer("The sky is blue.")["input_ids"]) == "The sky is blue."
