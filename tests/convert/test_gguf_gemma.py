"""GGUF files of Gemma 3 in small: read as transformers' own model of the same tensors, branches included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: transformers runs on it")
pytest.importorskip("transformers", reason="transformers is the oracle")

import psynth_jax as ps  # noqa: E402
from psynth_jax.config import DecoderConfig, LinearRope, LocalLayers, PlainRope  # noqa: E402
from psynth_jax.convert.convert import convert  # noqa: E402
from psynth_jax.convert.gguf import GGUFFile, read_config  # noqa: E402
from psynth_jax.convert.rules import gguf_rules, hf_rules  # noqa: E402
from psynth_jax.errors import CheckpointError, UnsupportedModelError  # noqa: E402
from tests.convert import gguf_bytes as gb  # noqa: E402
from tests.convert.gguf_bytes import ARRAY, BOOL, Typed  # noqa: E402
from tests.oracle import models, synthesis  # noqa: E402

pytestmark = pytest.mark.torch

SIZES = {"num_hidden_layers": 5, "sliding_window": 40}


def theirs(seed: int = 3, **changed: Any) -> Any:
    """Return transformers' model, whose queries are scaled by the width of a head, as llama.cpp does."""
    fields = {**SIZES, "query_pre_attn_scalar": 12, "tie_word_embeddings": True, **changed}
    return models.gemma3(seed, **fields)


def write(path: Path, model: Any, **changed: Typed | None) -> Path:
    """Write a model of transformers as llama.cpp's converter does: its names, and norms plus 1."""
    hf = model.config
    metadata = gb.model_metadata(
        "gemma3",
        **{
            "context_length": gb.number(hf.max_position_embeddings),
            "embedding_length": gb.number(hf.hidden_size),
            "block_count": gb.number(hf.num_hidden_layers),
            "feed_forward_length": gb.number(hf.intermediate_size),
            "attention__head_count": gb.number(hf.num_attention_heads),
            "attention__head_count_kv": gb.number(hf.num_key_value_heads),
            "attention__key_length": gb.number(hf.head_dim),
            "attention__value_length": gb.number(hf.head_dim),
            "attention__sliding_window": gb.number(hf.sliding_window),
            "attention__sliding_window_pattern": gb.number(2),
            "rope__freq_base": gb.real(1_000_000.0),
            **changed,
        },
    )
    state, tensors = model.state_dict(), {}
    config = DecoderConfig(
        family="gemma3_text",
        vocab_size=hf.vocab_size,
        width=hf.hidden_size,
        layers=hf.num_hidden_layers,
        heads=hf.num_attention_heads,
        kv_heads=hf.num_key_value_heads,
        head_width=hf.head_dim,
        mlp_width=hf.intermediate_size,
        norm_eps=1e-6,
        rope=PlainRope(theta=1e6),
        qk_norm=True,
        tied_head=True,
        max_positions=hf.max_position_embeddings,
    )
    names = {rule.ours: rule for rule in hf_rules(config)}
    for rule in gguf_rules(config):
        for place, name in rule.their_names(config).items():
            values = state[names[rule.ours].their_names(config)[place]].numpy()
            tensors[name] = values + np.float32(1) if "norm" in name else values
    return gb.write(path, metadata, tensors)


def logprobs(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        every = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
    return every[np.arange(len(ids) - 1), ids[1:]].numpy()


def drawn(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(models.VOCAB_SIZE, size=count).tolist()


def test_tensors_are_called_as_in_gguf(tmp_path: Path) -> None:
    model = theirs()
    names = set(GGUFFile(write(tmp_path / "m.gguf", model)).shapes())
    written = gb.model_tensors("gemma3")  # by hand, from a file that llama.cpp made
    assert {name for name in names if ".3." not in name and ".4." not in name} == set(written)


def test_log_probabilities(tmp_path: Path) -> None:
    model, ids = theirs(), drawn(1, 130)
    ours = ps.ParallelSynthesis(ps.load_model(write(tmp_path / "m.gguf", model)))
    np.testing.assert_allclose(ours.score(ids[:1], ids[1:]), logprobs(model, ids), atol=1e-4)


def test_branches(tmp_path: Path) -> None:
    model = theirs()
    ours = ps.ParallelSynthesis(ps.load_model(write(tmp_path / "m.gguf", model)))
    texts, prompt, target = [drawn(2, 9), drawn(3, 14)], drawn(4, 5), drawn(5, 6)
    found = ours.score(prompt, target, branches=ours.encode(texts))
    branches = [synthesis.OracleBranch([], text) for text in texts]
    np.testing.assert_allclose(found, synthesis.branch_logprobs(model, branches, prompt, target), atol=1e-4)
    assert np.abs(np.asarray(found) - np.asarray(ours.score(prompt, target))).max() > 0.01


def test_global_layers_with_linear_scaling(tmp_path: Path) -> None:
    """As in Gemma 3 4B: factor 8 in global layers, none in local ones."""
    rope = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    model, ids = theirs(rope_parameters=rope), drawn(1, 90)
    scaling = {"rope__scaling__type": gb.name("linear"), "rope__scaling__factor": gb.real(8.0)}
    path = write(tmp_path / "m.gguf", model, **scaling)
    assert read_config(GGUFFile(path)).rope == LinearRope(theta=1e6, factor=8.0)
    found = ps.ParallelSynthesis(ps.load_model(path)).score(ids[:1], ids[1:])
    np.testing.assert_allclose(found, logprobs(model, ids), atol=1e-4)
    convert(path, tmp_path / "hf", "hf")
    np.testing.assert_allclose(logprobs(reloaded(tmp_path / "hf"), ids), logprobs(model, ids), atol=1e-4)


def reloaded(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def test_transformers_reads_the_same_from_the_file(tmp_path: Path) -> None:
    """Its own reader knows only Gemma's pattern (of six layers, the last is global) and heads of 256."""
    from transformers import AutoModelForCausalLM

    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    sizes = {"num_hidden_layers": 6, "head_dim": 256, "query_pre_attn_scalar": 256, "vocab_size": gb.SIZES["V"]}
    model, ids = theirs(layer_types=kinds, **sizes), drawn(1, 120)
    path = write(tmp_path / "m.gguf", model, attention__sliding_window_pattern=None)
    described = {**dict(GGUFFile(path).values)}
    assert "gemma3.attention.sliding_window_pattern" not in described
    whole = tmp_path / "whole.gguf"
    file = GGUFFile(path)
    metadata = gb.model_metadata("gemma3", **typed(described)) | gb.sentencepiece_metadata(gemma=True)
    gb.write(whole, metadata, {name: file.read(name) for name in file.shapes()})
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=whole.name, dtype=torch.float32)
    read.config._attn_implementation = "eager"
    ours = ps.ParallelSynthesis(ps.load_model(whole)).score(ids[:1], ids[1:])
    np.testing.assert_allclose(ours, logprobs(read.eval(), ids), atol=1e-4)
    np.testing.assert_allclose(ours, logprobs(model, ids), atol=1e-4)


def typed(values: dict[str, Any]) -> dict[str, Typed]:
    found = {}
    for key, value in values.items():
        if key.startswith("gemma3."):
            kind = gb.number(value) if isinstance(value, int) else gb.real(value)
            found[key.removeprefix("gemma3.").replace(".", "__")] = kind
    return found


def test_converted(tmp_path: Path) -> None:
    model, ids = theirs(), drawn(1, 130)
    path = write(tmp_path / "m.gguf", model)
    convert(path, tmp_path / "hf", "hf")
    convert(path, tmp_path / "ours", "psynth")
    expected = logprobs(model, ids)
    again = reloaded(tmp_path / "hf")
    assert again.config.model_type == "gemma3_text"
    assert again.config.layer_types == model.config.layer_types
    np.testing.assert_allclose(logprobs(again, ids), expected, atol=1e-4)
    for kept in ("hf", "ours"):
        loaded = ps.load_model(tmp_path / kept)
        assert loaded.config == read_config(GGUFFile(path))
        found = ps.ParallelSynthesis(loaded).score(ids[:1], ids[1:])
        np.testing.assert_allclose(found, expected, atol=1e-4)


class TestConfig:
    def config(self, folder: Path, **changed: Typed | None) -> DecoderConfig:
        metadata = gb.model_metadata("gemma3", **changed)
        return read_config(GGUFFile(gb.write(folder / "m.gguf", metadata, gb.model_tensors("gemma3"))))

    def test_what_the_file_does_not_say(self, tmp_path: Path) -> None:
        config = self.config(tmp_path)
        assert config.local == LocalLayers(window=96, global_every=6, rope=PlainRope(theta=10_000.0))
        assert config.query_scale == gb.SIZES["H"] ** -0.5
        assert (config.tied_head, config.norms_from_one) == (True, True)

    @pytest.mark.parametrize(
        ("pattern", "every"),
        [
            (gb.number(3), 3),
            (Typed(ARRAY, [True, False, True], BOOL), 2),
            (Typed(ARRAY, [1, 1, 0], gb.U32), 3),
            (Typed(ARRAY, [True, True, True], BOOL), 4),
        ],
    )
    def test_pattern(self, pattern: Typed, every: int, tmp_path: Path) -> None:
        local = self.config(tmp_path, attention__sliding_window_pattern=pattern).local
        assert local is not None
        assert local.global_every == every

    def test_local_theta_and_no_window(self, tmp_path: Path) -> None:
        local = self.config(tmp_path, rope__freq_base_swa=gb.real(5000.0)).local
        assert local is not None
        assert local.rope == PlainRope(theta=5000.0)
        assert self.config(tmp_path, attention__sliding_window=gb.number(0)).local is None

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"final_logit_softcapping": gb.real(30.0)}, "a soft cap"),
            ({"attention__causal": Typed(BOOL, False)}, "attention to later tokens"),
            ({"rope__scaling__type": gb.name("yarn"), "rope__scaling__factor": gb.real(2.0)}, "YaRN in a model"),
            ({"attention__sliding_window_pattern": Typed(ARRAY, [False, True, True], BOOL)}, "alternate evenly"),
        ],
    )
    def test_refused(self, changed: dict[str, Typed], named: str, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedModelError, match=named):
            self.config(tmp_path, **changed)

    def test_scale_of_queries(self, tmp_path: Path) -> None:
        assert self.config(tmp_path, attention__scale=gb.real(0.25)).query_scale == 0.25

    def test_the_window_is_never_guessed(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no metadata gemma3\.attention\.sliding_window"):
            self.config(tmp_path, attention__sliding_window=None)
