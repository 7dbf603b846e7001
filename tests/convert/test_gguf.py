"""GGUF files that the tests write, and the real SmolLM2-135M against transformers' own reading of the same file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from psynth_jax.config import DecoderConfig, LinearRope, Llama3Rope, PlainRope, YarnRope
from psynth_jax.convert.gguf import GGUFFile, list_parameters, llama3_from_factors, read_config
from psynth_jax.convert.rules import axis_sizes, gguf_rules, hf_rules
from psynth_jax.errors import CheckpointError, ConfigError, UnsupportedModelError
from psynth_jax.ops.rope import llama3_frequencies, plain_frequencies
from psynth_jax.presets import preset


def read_parameters(source: Any, config: DecoderConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    return {stored.name: stored.read() for stored in list_parameters(source, config, dtype)}


def tiny(family: str, **changed: Any) -> DecoderConfig:
    fields = {
        "family": family,
        "vocab_size": 29,
        "width": 32,
        "layers": 3,
        "heads": 6,
        "kv_heads": 2,
        "head_width": 10,
        "mlp_width": 64,
        "norm_eps": 1e-5,
        "rope": PlainRope(theta=5000.0),
        "qk_norm": family == "qwen3",
        "qkv_bias": family == "qwen2",
        "max_positions": 64,
    }
    return DecoderConfig(**{**fields, **changed})


def random_tensors(config: DecoderConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {
        name: rng.standard_normal(rule.form.their_shape(axis_sizes(config))).astype(np.float32)
        for rule in gguf_rules(config)
        for name in rule.their_names(config).values()
    }


def write(path: Path, config: DecoderConfig, tensors: dict[str, np.ndarray], quantise: str = "", **metadata: Any) -> Path:
    """Write a file as llama.cpp's converter would; metadata keys lack the architecture and have __ for a dot."""
    family = metadata.pop("architecture", config.family)
    writer = gguf.GGUFWriter(path, family)
    values = {
        "block_count": config.layers,
        "context_length": config.max_positions,
        "embedding_length": config.width,
        "feed_forward_length": config.mlp_width,
        "attention__head_count": config.heads,
        "attention__head_count_kv": config.kv_heads,
        "attention__key_length": config.head_width,
        "attention__value_length": config.head_width,
        "attention__layer_norm_rms_epsilon": config.norm_eps,
        "rope__freq_base": config.rope.theta,
        **metadata,
    }
    for key, value in values.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}.get(type(value))
        if add is not None:
            add(f"{family}.{key.replace('__', '.')}", value)
    for name, tensor in tensors.items():
        if quantise and tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType[quantise]
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


CONFIGS = {
    "llama": tiny("llama"),
    "llama tied": tiny("llama", tied_head=True),
    "llama with biases": tiny("llama", qkv_bias=True, o_bias=True),
    "qwen2": tiny("qwen2"),
    "qwen3": tiny("qwen3"),
}


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of q or k as llama.cpp's converter does for architecture llama."""
    half = rows.shape[0] // heads // 2
    return np.stack([rows.reshape(heads, 2, half, -1)[:, r] for r in (0, 1)], axis=2).reshape(rows.shape)


class TestFile:
    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_config_and_parameters(self, tmp_path: Path, config: DecoderConfig) -> None:
        """Written from Hugging Face tensors by the converter's own recipe, read back as the Hugging Face rules read them."""
        rng = np.random.default_rng(4)
        sizes = axis_sizes(config)
        stored, expected = {}, {}
        for theirs, ours in zip(gguf_rules(config), hf_rules(config), strict=True):
            assert theirs.ours == ours.ours
            per_layer = []
            for name in theirs.their_names(config).values():
                tensor = rng.standard_normal(ours.form.their_shape(sizes)).astype(np.float32)
                per_layer.append(ours.form.to_ours(tensor, sizes))
                permuted = config.family == "llama" and (".attn_q." in name or ".attn_k." in name)
                stored[name] = interleave(tensor, config.heads if "_q" in name else config.kv_heads) if permuted else tensor
            expected[ours.ours] = np.reshape(per_layer, ours.our_shape(config))
        file = GGUFFile(write(tmp_path / "model.gguf", config, stored))
        assert read_config(file) == config
        parameters = read_parameters(file, config)
        assert set(parameters) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(parameters[name], value, err_msg=name)

    def test_head_width_follows_from_width(self, tmp_path: Path) -> None:
        config = tiny("llama", width=60)
        widths = {"attention__key_length": None, "attention__value_length": None}
        assert read_config(GGUFFile(write(tmp_path / "m.gguf", config, random_tensors(config), **widths))) == config

    @pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
    def test_quantised_tensors(self, tmp_path: Path, kind: str) -> None:
        config = tiny("qwen3")
        tensors = random_tensors(config)
        file = GGUFFile(write(tmp_path / "m.gguf", config, tensors, quantise=kind))
        number = gguf.GGMLQuantizationType[kind]
        tensor = tensors["blk.1.ffn_down.weight"]
        expected = gguf.quants.dequantize(gguf.quants.quantize(tensor, number), number).T
        assert not np.array_equal(expected, tensor.T)
        np.testing.assert_array_equal(read_parameters(file, config)["layers.down"][1], expected)
        down = read_parameters(file, config, "bfloat16")["layers.down"][1]
        np.testing.assert_array_equal(down, expected.astype(ml_dtypes.bfloat16))

    def test_all_problems_in_one_message(self, tmp_path: Path) -> None:
        config = tiny("llama")
        tensors = random_tensors(config)
        del tensors["output_norm.weight"]
        tensors["blk.1.ffn_up.weight"] = np.zeros((32, 64), np.float32)
        tensors["blk.0.ffn_gate_inp.weight"] = np.zeros(7, np.float32)
        file = GGUFFile(write(tmp_path / "m.gguf", config, tensors))
        with pytest.raises(CheckpointError) as caught:
            read_parameters(file, read_config(file))
        for part in [
            "3 problems",
            "missing output_norm.weight [32]",
            "blk.1.ffn_up.weight has shape [32, 64], expected [64, 32]",
            "extra blk.0.ffn_gate_inp.weight [7]",
        ]:
            assert part in str(caught.value)

    def test_unknown_dtype(self, tmp_path: Path) -> None:
        config = tiny("llama")
        file = GGUFFile(write(tmp_path / "m.gguf", config, random_tensors(config)))
        with pytest.raises(ConfigError, match="'float64'"):
            read_parameters(file, config, "float64")

    @pytest.mark.parametrize("keep", [0, 3, 30, 300, 2000, -40])
    def test_truncated(self, tmp_path: Path, keep: int) -> None:
        config = tiny("llama")
        path = write(tmp_path / "m.gguf", config, random_tensors(config))
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match=r"m\.gguf is not a complete GGUF file"):
            GGUFFile(path)

    def test_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 not a model" * 100)
        with pytest.raises(CheckpointError, match="not a complete GGUF file"):
            GGUFFile(tmp_path / "m.gguf")
        with pytest.raises(CheckpointError, match="cannot read"):
            GGUFFile(tmp_path / "absent.gguf")

    def test_missing_metadata_is_named(self, tmp_path: Path) -> None:
        config = tiny("llama")
        file = GGUFFile(write(tmp_path / "m.gguf", config, random_tensors(config), feed_forward_length=None))
        with pytest.raises(CheckpointError, match=r"llama\.feed_forward_length"):
            read_config(file)


class TestRefusals:
    @pytest.mark.parametrize(
        ("metadata", "named"),
        [
            ({"architecture": "gemma2"}, "architecture 'gemma2'"),
            ({"expert_count": 8}, "llama.expert_count"),
            ({"attention__sliding_window": 16}, "sliding-window"),
            ({"attention__value_length": 12}, "another width"),
            ({"rope__dimension_count": 6}, "6 of 10"),
            ({"rope__scaling__type": "longrope"}, "'longrope'"),
            ({"rope__scaling__type": "yarn", "rope__scaling__yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
        ],
    )
    def test_feature_is_named(self, tmp_path: Path, metadata: dict[str, Any], named: str) -> None:
        config = tiny("llama")
        file = GGUFFile(write(tmp_path / "m.gguf", config, random_tensors(config), **metadata))
        with pytest.raises(UnsupportedModelError) as caught:
            read_config(file)
        assert named in str(caught.value)


class TestRope:
    def test_yarn(self, tmp_path: Path) -> None:
        config = tiny("qwen3")
        metadata = {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 32,
            "rope__scaling__attn_factor": 1.5,
            "rope__scaling__yarn_beta_fast": 20.0,
        }
        read = read_config(GGUFFile(write(tmp_path / "m.gguf", config, random_tensors(config), **metadata)))
        assert read.rope == YarnRope(
            theta=5000.0,
            factor=4.0,
            original_positions=32,
            beta_fast=20.0,
            beta_slow=1.0,
            attention_factor=1.5 * (0.1 * math.log(4.0) + 1.0),
        )
        assert read.max_positions == 128

    @pytest.mark.parametrize(
        "metadata",
        [
            {"rope__scaling__type": "linear", "rope__scaling__factor": 2.0},
            {"rope__scaling__factor": 2.0},
            {"rope__scale_linear": 2.0},
        ],
    )
    def test_linear(self, tmp_path: Path, metadata: dict[str, Any]) -> None:
        """llama.cpp takes a factor without a type for linear scaling."""
        config = tiny("llama")
        read = read_config(GGUFFile(write(tmp_path / "m.gguf", config, random_tensors(config), **metadata)))
        assert read.rope == LinearRope(theta=5000.0, factor=2.0)

    @pytest.mark.parametrize(
        "metadata",
        [
            {"rope__scaling__type": "none", "rope__scaling__factor": 2.0},
            {"rope__scaling__type": "linear", "rope__scaling__factor": 1.0},
            {"rope__scaling__type": "linear", "rope__scaling__factor": 0.0},
        ],
    )
    def test_a_factor_that_is_none(self, tmp_path: Path, metadata: dict[str, Any]) -> None:
        config = tiny("llama")
        file = GGUFFile(write(tmp_path / "m.gguf", config, random_tensors(config), **metadata))
        assert read_config(file).rope == PlainRope(theta=5000.0)

    @staticmethod
    def stored_factors(rope: Llama3Rope, head_width: int) -> np.ndarray:
        """Compute llama.cpp's `rope_freqs`: one divisor per plane, float32."""
        divisors = []
        for frequency in plain_frequencies(rope.theta, head_width):
            wavelength = 2 * math.pi / float(frequency)
            if wavelength < rope.original_positions / rope.high_freq_factor:
                divisors.append(1.0)
            elif wavelength > rope.original_positions / rope.low_freq_factor:
                divisors.append(rope.factor)
            else:
                width = rope.high_freq_factor - rope.low_freq_factor
                smooth = (rope.original_positions / wavelength - rope.low_freq_factor) / width
                divisors.append(1 / ((1 - smooth) / rope.factor + smooth))
        return np.asarray(divisors, np.float32)

    @pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b"])
    def test_llama3_scaling_is_recovered(self, name: str) -> None:
        config = preset(name).config
        rope = config.rope
        assert isinstance(rope, Llama3Rope)
        factors = self.stored_factors(rope, config.head_width)
        assert llama3_from_factors(factors, rope.theta, config.head_width) == rope.model_dump()
        plain = plain_frequencies(rope.theta, config.head_width)
        scaled = llama3_frequencies(plain, **rope.model_dump(exclude={"kind", "theta"}))
        np.testing.assert_allclose(scaled, plain / factors, rtol=1e-6)

    @pytest.mark.parametrize(("high", "original", "factor"), [(4.0, 4096, 16.0), (2.5, 8192, 8.0), (6.0, 12_345, 3.0)])
    def test_other_numbers_of_the_same_form(self, high: float, original: int, factor: float) -> None:
        rope = Llama3Rope(
            theta=500_000.0, factor=factor, low_freq_factor=1.0, high_freq_factor=high, original_positions=original
        )
        assert llama3_from_factors(self.stored_factors(rope, 128), rope.theta, 128) == rope.model_dump()

    def test_file_with_factors(self, tmp_path: Path) -> None:
        rope = preset("llama-3.2-1b").config.rope
        config = tiny("llama", head_width=64, rope=rope)
        tensors = {**random_tensors(config), "rope_freqs.weight": self.stored_factors(rope, 64)}
        file = GGUFFile(write(tmp_path / "m.gguf", config, tensors))
        assert read_config(file) == config
        assert "layers.q" in read_parameters(file, config)

    def test_all_ones_is_no_scaling(self) -> None:
        assert llama3_from_factors(np.ones(32, np.float32), 1e4, 64) == {"kind": "plain", "theta": 1e4}

    @pytest.mark.parametrize("theta", [1.0, 1e-30, 1e30, 3e38, 10_000.0])
    def test_any_factors(self, theta: float) -> None:
        """Lines with any slope, points that lie on none, planes that are all alike: refused, and never anything else."""
        rng, refused = np.random.default_rng(8), 0
        for _ in range(300):
            factors = 1 + np.abs(rng.standard_cauchy(16)) * 10.0 ** rng.integers(-12, 30)
            factors[rng.integers(16, size=rng.integers(16))] = 1.0
            factors[rng.integers(16, size=rng.integers(16))] = factors.max()
            with np.errstate(over="ignore"):
                stored = factors.astype(np.float32)
            try:
                llama3_from_factors(stored, theta, 32)
            except UnsupportedModelError:
                refused += 1
        assert refused > 200

    @pytest.mark.parametrize("damage", ["noise", "no ramp", "length", "below one", "nan"])
    def test_other_factors_are_refused(self, damage: str) -> None:
        rope = preset("llama-3.2-1b").config.rope
        factors = self.stored_factors(rope, 64)
        if damage == "noise":
            factors[np.flatnonzero((factors > 1) & (factors < 32))[0]] *= 1.001
        elif damage == "no ramp":
            factors = np.where(factors < 32, 1, 32).astype(np.float32)
        elif damage == "length":
            factors = factors[:-1]
        else:
            factors[3] = 0.5 if damage == "below one" else np.nan
        with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight is not the scaling of Llama 3"):
            llama3_from_factors(factors, rope.theta, 64)


@pytest.mark.weights
class TestSmolLM2:
    def test_config_is_the_presets(self, smollm2_path: Path) -> None:
        assert read_config(GGUFFile(smollm2_path)) == preset("smollm2-135m").config

    @pytest.mark.slow
    @pytest.mark.torch
    def test_parameters_equal_transformers(self, smollm2_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        file = GGUFFile(smollm2_path)
        config = read_config(file)
        ours = read_parameters(file, config)
        model = AutoModelForCausalLM.from_pretrained(str(smollm2_path.parent), gguf_file=smollm2_path.name)
        states = {name: value.numpy() for name, value in model.state_dict().items()}
        for rule in hf_rules(config):
            theirs = [rule.form.to_ours(states[name], axis_sizes(config)) for name in rule.their_names(config).values()]
            np.testing.assert_array_equal(ours[rule.ours], np.reshape(theirs, rule.our_shape(config)), err_msg=rule.ours)
