"""Hugging Face directories: configs in both spellings, what is refused, and weights of every shape of damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import psynth_jax as ps
from psynth_jax.config import DecoderConfig
from psynth_jax.convert import safetensors_file
from psynth_jax.convert.convert import convert
from psynth_jax.convert.hf import config_from_hf, list_parameters, read_config, read_end_tokens, tied_as_stored
from psynth_jax.convert.load import load_model
from psynth_jax.convert.rules import axis_sizes, hf_rules
from psynth_jax.convert.write_hf import config_to_hf
from psynth_jax.errors import CheckpointError, ConfigError, UnsupportedModelError
from psynth_jax.nn.decoder import parameter_shapes
from psynth_jax.ops import rope as rope_ops


def read_parameters(source: Any, config: DecoderConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    return {stored.name: stored.read() for stored in list_parameters(source, config, dtype)}


LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 29,
    "hidden_size": 22,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 13,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
}
QWEN2 = {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {**LLAMA, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
QWEN3_MOE = {
    **{key: value for key, value in QWEN3.items() if key != "intermediate_size"},
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 13,
    "norm_topk_prob": True,
}
GEMMA3 = {
    **{key: value for key, value in LLAMA.items() if key != "rope_theta"},
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 64,
    "sliding_window": 16,
    "sliding_window_pattern": 3,
}


def shapes_of(raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    config = config_from_hf(raw)
    return {
        name: rule.form.their_shape(axis_sizes(config))
        for rule in hf_rules(config)
        for name in rule.their_names(config).values()
    }


def random_tensors(raw: dict[str, Any], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes_of(raw).items()}


def write_model(directory: Path, raw: dict[str, Any], tensors: dict[str, np.ndarray], shards: int = 1) -> Path:
    (directory / "config.json").write_text(json.dumps(raw))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, name in enumerate(names):
        save_file({key: tensors[key] for key in sorted(tensors)[i::shards]}, directory / name)
    weight_map = {key: names[i % shards] for i, key in enumerate(sorted(tensors))}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


class TestConfig:
    def test_fields(self) -> None:
        config = config_from_hf({**QWEN3, "attention_bias": True, "tie_word_embeddings": True})
        assert config.sizes == {"V": 29, "D": 22, "L": 3, "N": 6, "K": 2, "H": 10, "F": 13}
        assert (config.qk_norm, config.qkv_bias, config.o_bias, config.tied_head) == (True, True, True, True)
        assert (config.rope.theta, config.norm_eps, config.max_positions) == (5000.0, 1e-5, 64)

    @pytest.mark.parametrize(
        ("scaling", "kind"),
        [
            ({"rope_type": "default"}, "plain"),
            ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, "yarn"),
            ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 20, "beta_slow": 2, "attention_factor": 1.5}, "yarn"),
            (
                {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
                "llama3",
            ),
        ],
    )
    def test_both_spellings_of_rope_mean_the_same(self, scaling, kind) -> None:
        old = {**LLAMA, "torch_dtype": "bfloat16", "rope_scaling": scaling}
        new = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
        new |= {"dtype": "bfloat16", "rope_parameters": {**scaling, "rope_theta": LLAMA["rope_theta"]}}
        assert config_from_hf(old) == config_from_hf(new)
        assert config_from_hf(old).rope.kind == kind

    def test_yarn_extends_the_context(self) -> None:
        scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48}
        assert config_from_hf({**QWEN3, "rope_scaling": scaling}).max_positions == 192

    @pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
    def test_defaults_are_those_of_transformers(self, family: str) -> None:
        transformers = pytest.importorskip("transformers", reason="the defaults compared with are transformers'")
        theirs = transformers.AutoConfig.for_model(family)
        ours = config_from_hf({"model_type": family})
        head_width = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
        assert ours.sizes == {
            "V": theirs.vocab_size,
            "D": theirs.hidden_size,
            "L": theirs.num_hidden_layers,
            "N": theirs.num_attention_heads,
            "K": theirs.num_key_value_heads,
            "H": head_width,
            "F": theirs.intermediate_size,
        }
        assert ours.norm_eps == theirs.rms_norm_eps
        rope = theirs.rope_parameters
        assert ours.rope.theta == rope.get("full_attention", rope)["rope_theta"]
        if ours.local is not None:
            assert ours.local.rope.theta == rope["sliding_attention"]["rope_theta"]
            assert ours.local.window == theirs.sliding_window and ours.query_scale == theirs.query_pre_attn_scalar**-0.5
            local = [(layer + 1) % ours.local.global_every > 0 for layer in range(ours.layers)]
            assert local == [kind == "sliding_attention" for kind in theirs.layer_types]
        assert ours.tied_head == theirs.tie_word_embeddings
        assert ours.o_bias == getattr(theirs, "attention_bias", False)
        assert ours.max_positions == theirs.max_position_embeddings

    @pytest.mark.parametrize(("family", "absent", "null"), [("llama", 16, 16), ("qwen2", 32, 16), ("qwen3", 32, 16)])
    def test_kv_heads_left_out(self, family: str, absent: int, null: int) -> None:
        raw = {"model_type": family, "num_attention_heads": 32 if family != "llama" else 16}
        assert config_from_hf(raw).kv_heads == absent
        assert config_from_hf({**raw, "num_attention_heads": 16, "num_key_value_heads": None}).kv_heads == null

    @pytest.mark.torch
    @pytest.mark.parametrize(
        "scaling",
        [
            {"factor": 4.0},
            {"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3},
            {"factor": 4.0, "mscale": 0.7},
            {"factor": 1.0, "mscale": 0.7, "mscale_all_dim": 1.3},
            {"factor": 3.0, "attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        ],
    )
    def test_yarn_equals_transformers(self, scaling: dict[str, float]) -> None:
        from transformers import Qwen3Config
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        parameters = {"rope_type": "yarn", "rope_theta": 5000.0, "original_max_position_embeddings": 64, **scaling}
        raw = {**QWEN3, "head_dim": 32, "rope_parameters": parameters}
        rope = config_from_hf(raw).rope
        frequencies, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](Qwen3Config(**raw))
        assert rope.attention_factor == pytest.approx(attention_factor, rel=1e-12)
        ours = rope_ops.yarn_frequencies(
            rope_ops.plain_frequencies(rope.theta, 32), **rope.model_dump(exclude={"kind", "attention_factor"})
        )
        np.testing.assert_allclose(ours, frequencies.numpy(), rtol=1e-6)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"model_type": "mamba"}, "model_type 'mamba'"),
            ({"model_type": None}, "model_type None"),
            ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
            ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
            ({"mlp_bias": True}, "mlp_bias"),
            ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "sliding-window"),
            ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "linear_attention"),
            ({"no_rope_layers": [1, 1, 0]}, "no_rope_layers"),
            ({"no_rope_layer_interval": 4}, "no_rope_layers"),
            ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
            ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
            ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "partial_rotary_factor 0.25"),
            ({"quantization_config": {"quant_method": "awq"}}, "quantization_config: awq"),
            ({"rope_interleaved": True}, "rope_interleaved"),
        ],
    )
    def test_feature_is_named(self, changed: dict[str, Any], named: str) -> None:
        config_from_hf(LLAMA)
        with pytest.raises(UnsupportedModelError) as caught:
            config_from_hf({**LLAMA, **changed})
        assert named in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("raw", [QWEN2, QWEN3])
    def test_sliding_window_only_where_layers_slide(self, raw: dict[str, Any]) -> None:
        window = {"use_sliding_window": True, "sliding_window": 16}
        with pytest.raises(UnsupportedModelError, match="sliding-window"):
            config_from_hf({**raw, **window, "max_window_layers": 2})
        assert config_from_hf({**raw, **window, "max_window_layers": 3}) == config_from_hf(raw)
        assert config_from_hf({**raw, **window, "use_sliding_window": False, "max_window_layers": 0}) == config_from_hf(raw)

    def test_gemma(self) -> None:
        """Both spellings of local layers and of their frequencies."""
        config = config_from_hf(GEMMA3)
        assert config.local is not None and config.query_scale == 0.125 and config.tied_head
        assert (config.local.window, config.local.global_every) == (16, 3)
        assert (config.rope.theta, config.local.rope.theta) == (1e6, 1e4)
        spelled = {
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        }
        other = config_from_hf({**GEMMA3, **spelled})
        assert other.local is not None and other.local.global_every == 3 and other.local.rope.theta == 300.0
        assert other.rope.model_dump() == {"kind": "linear", "theta": 5e5, "factor": 8.0}
        assert config_from_hf({**GEMMA3, "layer_types": ["full_attention"] * 3}).local is None

    @pytest.mark.parametrize(
        "changed",
        [{"query_pre_attn_scalar": 0}, {"query_pre_attn_scalar": "a"}, {"layer_types": 7}, {"sliding_window_pattern": -1}],
    )
    def test_values_of_gemma_that_make_no_sense(self, changed: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(changed))):
            config_from_hf({**GEMMA3, **changed})

    def test_gemma_with_local_layers_only(self) -> None:
        """However it is spelled, and there and back."""
        spelled = [{"layer_types": ["sliding_attention"] * 3}, {"sliding_window_pattern": 6}]
        one, other = (config_from_hf({**GEMMA3, **changed}) for changed in spelled)
        assert one == other == config_from_hf(config_to_hf(one))

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"final_logit_softcapping": 30.0}, "soft cap"),
            ({"hidden_activation": "relu"}, "hidden_activation 'relu'"),
            ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
            ({"layer_types": ["full_attention", "full_attention", "sliding_attention"]}, "do not alternate evenly"),
            ({"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "rope type 'yarn' in local layers"),
            ({"rope_parameters": {"sliding_attention": {"type": "linear"}}}, "rope type 'linear' in local layers"),
        ],
    )
    def test_what_gemma_lacks_is_named(self, changed: dict[str, Any], named: str) -> None:
        with pytest.raises(UnsupportedModelError, match=named):
            config_from_hf({**GEMMA3, **changed})

    def test_every_feature_is_listed(self) -> None:
        with pytest.raises(UnsupportedModelError, match=r"gelu.*mlp_bias.*dynamic"):
            config_from_hf(
                {**LLAMA, "hidden_act": "gelu", "mlp_bias": True, "rope_scaling": {"type": "dynamic", "factor": 2}}
            )

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"hidden_size": "22"}, "hidden_size"),
            ({"num_attention_heads": 0}, "num_attention_heads"),
            ({"num_key_value_heads": 4}, "multiple of kv_heads"),
            ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
            ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor, high_freq_factor"),
            ({"rope_scaling": [1]}, "rope_scaling"),
        ],
    )
    def test_wrong_values(self, changed: dict[str, Any], named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            config_from_hf({**LLAMA, **changed})


class TestParameters:
    @pytest.mark.parametrize(
        "raw", [LLAMA, {**LLAMA, "attention_bias": True}, QWEN2, QWEN3, {**QWEN3, "tie_word_embeddings": True}]
    )
    @pytest.mark.parametrize("shards", [1, 3])
    def test_every_tensor_is_where_it_belongs(self, tmp_path: Path, raw: dict[str, Any], shards: int) -> None:
        tensors = random_tensors(raw)
        config = read_config(write_model(tmp_path, raw, tensors, shards))
        parameters = read_parameters(tmp_path, config)
        assert {name: value.shape for name, value in parameters.items()} == parameter_shapes(config)
        assert {value.dtype for value in parameters.values()} == {np.dtype(np.float32)}
        for rule in hf_rules(config):
            for place, name in rule.their_names(config).items():
                ours = parameters[rule.ours][place]
                np.testing.assert_array_equal(rule.form.to_theirs(ours, axis_sizes(config)), tensors[name], err_msg=name)

    @pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
    @pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
    def test_dtypes(self, tmp_path: Path, stored: Any, wanted: str) -> None:
        tensors = random_tensors(LLAMA, stored)
        config = read_config(write_model(tmp_path, LLAMA, tensors))
        parameters = read_parameters(tmp_path, config, wanted)
        up = parameters["layers.up"]
        assert up.dtype == np.dtype(getattr(ml_dtypes, wanted, wanted))
        expected = tensors["model.layers.1.mlp.up_proj.weight"].T.astype(np.float32).astype(up.dtype)
        np.testing.assert_array_equal(up[1], expected)

    def test_values_beyond_float16_are_refused(self, tmp_path: Path) -> None:
        tensors = random_tensors(LLAMA)
        tensors["model.norm.weight"][3] = 1e6
        config = read_config(write_model(tmp_path, LLAMA, tensors))
        assert read_parameters(tmp_path, config, "bfloat16")["final_norm"][3] > 9e5
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*float16"):
            read_parameters(tmp_path, config, "float16")

    def test_all_problems_in_one_message(self, tmp_path: Path) -> None:
        tensors = random_tensors(LLAMA)
        del tensors["model.norm.weight"], tensors["model.layers.2.mlp.up_proj.weight"]
        tensors["model.layers.1.self_attn.o_proj.weight"] = np.zeros((60, 22), np.float32)
        tensors["model.layers.3.input_layernorm.weight"] = np.zeros(22, np.float32)
        tensors["lm_head.weight"] = np.zeros((29, 22), np.int32)
        config = read_config(write_model(tmp_path, LLAMA, tensors))
        with pytest.raises(CheckpointError) as caught:
            read_parameters(tmp_path, config)
        for part in [
            "5 problems",
            "missing model.norm.weight [22]",
            "missing model.layers.2.mlp.up_proj.weight [13, 22]",
            "model.layers.1.self_attn.o_proj.weight has shape [60, 22], expected [22, 60]",
            "extra model.layers.3.input_layernorm.weight [22]",
            "lm_head.weight has dtype I32",
        ]:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_tied_head_may_be_stored_if_it_is_the_embedding(self, tmp_path: Path) -> None:
        raw = {**LLAMA, "tie_word_embeddings": True}
        tensors = random_tensors(raw)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.zeros(5, np.float32)
        config = read_config(write_model(tmp_path, raw, tensors))
        assert "head" not in read_parameters(tmp_path, config)
        assert tied_as_stored(tmp_path, config) == config

    def test_a_tied_model_may_keep_the_name_of_its_head(self, tmp_path: Path) -> None:
        """`safetensors.torch.save_model` keeps one of the two names, whichever comes first."""
        raw = {**LLAMA, "tie_word_embeddings": True}
        tensors = random_tensors(raw)
        table = tensors.pop("model.embed_tokens.weight")
        write_model(tmp_path, raw, {**tensors, "lm_head.weight": table})
        model = load_model(tmp_path, "float16")
        assert model.config.tied_head
        np.testing.assert_array_equal(model.decoder.parameters()["embedding"], table.astype(np.float16))
        (tmp_path / "both").mkdir()
        both = {**tensors, "model.embed_tokens.weight": table, "lm_head.weight": table}
        assert load_model(write_model(tmp_path / "both", raw, both)).fingerprint == model.fingerprint

    @pytest.mark.parametrize("to", ["hf", "psynth"])
    def test_a_head_that_differs_is_not_tied(self, to: Any, tmp_path: Path) -> None:
        """As in transformers, whatever the config says; what is written from it says so."""
        raw = {**LLAMA, "tie_word_embeddings": True}
        tensors = random_tensors(raw)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["lm_head.weight"][28, 21] += 1
        (tmp_path / "source").mkdir()
        model = load_model(write_model(tmp_path / "source", raw, tensors))
        assert not model.config.tied_head
        np.testing.assert_array_equal(model.decoder.parameters()["head"], tensors["lm_head.weight"])
        convert(tmp_path / "source", tmp_path / "written", to)
        assert not json.loads((tmp_path / "written" / "config.json").read_text())["tie_word_embeddings"]
        assert load_model(tmp_path / "written").fingerprint == model.fingerprint

    @pytest.mark.torch
    @pytest.mark.parametrize("kept", [("model.embed_tokens.weight",), ("lm_head.weight",), ()])
    def test_tied_pairs_as_transformers_reads_them(self, kept: tuple[str, ...], tmp_path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        raw = {**LLAMA, "hidden_size": 24, "tie_word_embeddings": True}
        tensors = random_tensors({**raw, "tie_word_embeddings": False})
        if kept:
            pair = {"model.embed_tokens.weight", "lm_head.weight"}
            tensors = {name: values for name, values in tensors.items() if name not in pair - {*kept}}
        write_model(tmp_path, raw, {name: values / 5 for name, values in tensors.items()})
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
        ids = [3, 14, 15, 9, 2, 6]
        with torch.no_grad():
            expected = torch.log_softmax(theirs(torch.tensor([ids])).logits[0].double(), -1)
        found = ps.ParallelSynthesis(load_model(tmp_path)).score(ids[:2], ids[2:])
        picked = [float(expected[place - 1, ids[place]]) for place in range(2, len(ids))]
        np.testing.assert_allclose(found, picked, atol=1e-4)

    @pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
    def test_large_tensors_are_read_in_pieces(self, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tensors = random_tensors(LLAMA, dtype)
        config = read_config(write_model(tmp_path, LLAMA, tensors))
        whole = read_parameters(tmp_path, config)
        for size in (1, 200, 5000):
            monkeypatch.setattr(safetensors_file, "_PIECE_BYTES", size)
            pieces = read_parameters(tmp_path, config)
            assert all(np.array_equal(pieces[name], array) for name, array in whole.items())

    def test_untied_head_must_be_there(self, tmp_path: Path) -> None:
        tensors = random_tensors({**LLAMA, "tie_word_embeddings": True})
        config = read_config(write_model(tmp_path, LLAMA, tensors))
        with pytest.raises(CheckpointError, match=r"1 problem\).*missing lm_head\.weight \[29, 22\]"):
            read_parameters(tmp_path, config)

    def test_a_tensor_in_two_shards(self, tmp_path: Path) -> None:
        tensors = random_tensors(LLAMA)
        config = read_config(write_model(tmp_path, LLAMA, tensors, shards=2))
        for path in tmp_path.glob("*.safetensors"):
            save_file(tensors, path)
        with pytest.raises(CheckpointError, match=r"30 problems.*lm_head\.weight is in model-00001\S* and in model-00002"):
            read_parameters(tmp_path, config)

    @pytest.mark.torch
    @pytest.mark.parametrize(
        "name", ["llama", "llama_llama3_rope", "llama_tied", "llama_attention_bias", "qwen2", "qwen3", "qwen3_yarn"]
    )
    def test_models_that_transformers_saved(self, tmp_path: Path, name: str) -> None:
        from tests.oracle import models

        model = models.TINY[name]()
        models.save(model, tmp_path)
        config = read_config(tmp_path)
        parameters = read_parameters(tmp_path, config)
        states = {key: value.numpy() for key, value in model.state_dict().items()}
        for rule in hf_rules(config):
            stacked = [rule.form.to_ours(states.pop(key), axis_sizes(config)) for key in rule.their_names(config).values()]
            np.testing.assert_array_equal(parameters[rule.ours], np.reshape(stacked, rule.our_shape(config)))
        assert set(states) <= {"lm_head.weight"}
        assert config.rope.kind == {"llama_llama3_rope": "llama3", "qwen3_yarn": "yarn"}.get(name, "plain")


class TestDamage:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        return write_model(tmp_path, LLAMA, random_tensors(LLAMA))

    @pytest.mark.parametrize("keep", [0, 5, 200, -1])
    def test_truncated_weights(self, directory: Path, keep: int) -> None:
        path = directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a complete safetensors file"):
            read_parameters(directory, config_from_hf(LLAMA))

    def test_truncated_shard_is_named(self, tmp_path: Path) -> None:
        write_model(tmp_path, LLAMA, random_tensors(LLAMA), shards=3)
        path = tmp_path / "model-00002-of-00003.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(CheckpointError, match="model-00002-of-00003"):
            read_parameters(tmp_path, config_from_hf(LLAMA))
        path.unlink()
        with pytest.raises(CheckpointError, match="lacks model-00002-of-00003"):
            read_parameters(tmp_path, config_from_hf(LLAMA))

    def test_index_may_not_leave_the_directory(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
        with pytest.raises(CheckpointError, match="outside its directory"):
            read_parameters(tmp_path, config_from_hf(LLAMA))

    def test_pickles_are_not_read(self, directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="torch pickle"):
            read_parameters(directory, config_from_hf(LLAMA))

    def test_no_weights(self, directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
            read_parameters(directory, config_from_hf(LLAMA))

    @pytest.mark.parametrize(
        ("text", "reason"), [("{", "not valid JSON"), ("[]", "JSON object"), (None, "has no config.json")]
    )
    def test_config(self, directory: Path, text: str | None, reason: str) -> None:
        (directory / "config.json").unlink()
        if text is not None:
            (directory / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=reason):
            read_config(directory)


class TestEndTokens:
    @pytest.mark.parametrize(
        ("generation", "config", "expected"),
        [
            ({"eos_token_id": [5, 7]}, {"eos_token_id": 3}, {5, 7}),
            ({"eos_token_id": 5}, {}, {5}),
            ({}, {"eos_token_id": 3}, {3}),
            (None, {"eos_token_id": [3, 0]}, {0, 3}),
            (None, {}, set()),
        ],
    )
    def test_generation_config_comes_first(self, tmp_path: Path, generation, config, expected) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        assert read_end_tokens(tmp_path) == expected

    def test_wrong_type(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
        with pytest.raises(CheckpointError, match="eos_token_id"):
            read_end_tokens(tmp_path)
