"""GGUF files: metadata -> `DecoderConfig`, dequantised tensors -> parameters, and the tokenizer's description.

What llama.cpp computes from a file is what is read here.  Knows nothing of the hub, of devices and of tokenizer classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig
from psynth_jax.convert.hf import longest_context, yarn_attention_factor
from psynth_jax.convert.rules import (
    FLOAT32,
    StoredParameter,
    find_problems,
    gguf_rules,
    parameter_dtype,
    refuse_problems,
    stored_parameters,
)
from psynth_jax.errors import CheckpointError, UnsupportedModelError

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe"}  # theirs -> family
_FREQUENCY_FACTORS = "rope_freqs.weight"


class GGUFFile:
    """One open GGUF file (memory-mapped), as a `rules.TensorSource` with metadata."""

    def __init__(self, path: str | Path):
        """Read the headers.  Raises `CheckpointError` for a file that is absent, truncated or not GGUF."""
        self.path = Path(path)
        try:
            self._reader = gguf.GGUFReader(self.path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from None
        except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
            # What the reader raises where the bytes run out or make no sense; it has no error of its own.
            raise CheckpointError(f"{self.path} is not a complete GGUF file: {error}") from None

    def metadata(self, key: str, default: Any = None) -> Any:
        """Return one metadata value; float32 values as the shortest decimal that rounds to them (1e-05, not 9.99e-06)."""
        field = self._reader.fields.get(key)
        if field is None:
            return default
        value = field.contents()
        if field.types and field.types[0] == gguf.GGUFValueType.FLOAT32:
            return float(str(np.float32(value)))
        return value

    def required(self, key: str) -> Any:
        """Return one metadata value.  Raises `CheckpointError` naming the key when it is not there."""
        value = self.metadata(key)
        if value is None:
            raise CheckpointError(f"{self.path} has no metadata {key}")
        return value

    def tokenizer_metadata(self) -> dict[str, Any]:
        """Return everything that the file says about its tokenizer, `tokenizer.Tokenizer.from_gguf`'s input."""
        return {key: self.metadata(key) for key in self._reader.fields if key.startswith("tokenizer.")}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of every tensor, outermost axis first."""
        return {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> np.dtype:
        """Return float32: what a quantised tensor becomes."""
        return FLOAT32

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Dequantise one tensor to float32, or only the rows of a piece of it, and return the piece.

        Raises `CheckpointError` for a quantisation that cannot be read.
        """
        tensor = self._tensors[name]
        rows = index[:1] if len(index) > 1 else ()  # what is quantised together lies within a row
        try:
            values = gguf.quants.dequantize(tensor.data[rows], tensor.tensor_type)
        except NotImplementedError:  # how the gguf package says that it does not know a quantisation
            kind = tensor.tensor_type.name
            raise CheckpointError(f"{name} in {self.path} is quantised as {kind}, which cannot be read") from None
        rest = (slice(None),) * len(rows) + index[len(rows) :]
        return np.asarray(values[rest], np.float32)


# ------------------------------------------------------------------------------------------------------------- config


def read_config(file: GGUFFile) -> DecoderConfig:
    """Turn GGUF metadata into a `DecoderConfig`.

    Raises `UnsupportedModelError` naming what is not implemented, and `CheckpointError` for metadata that is missing.
    """
    family = file.required("general.architecture")
    if family not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"GGUF architecture {family!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
    heads, width = file.required(f"{family}.attention.head_count"), file.required(f"{family}.embedding_length")
    if type(heads) is not int or heads < 1 or type(width) is not int:
        raise UnsupportedModelError(
            f"heads that differ from layer to layer ({family}.attention.head_count) are not supported"
        )
    head_width = file.metadata(f"{family}.attention.key_length", width // heads)
    unsupported = _unsupported_features(file, family, head_width)
    if unsupported:
        raise UnsupportedModelError("this model uses what is not supported: " + "; ".join(unsupported))
    names = file.shapes()
    if "token_embd.weight" not in names:
        refuse_problems(file.path, ["missing token_embd.weight"])
    rope, mixture = _rope(file, family, head_width), family == "qwen3moe"
    return DecoderConfig.parse(
        {
            "family": ARCHITECTURES[family],
            "vocab_size": names["token_embd.weight"][0],
            "width": width,
            "layers": file.required(f"{family}.block_count"),
            "heads": heads,
            "kv_heads": file.metadata(f"{family}.attention.head_count_kv", heads),
            "head_width": head_width,
            "mlp_width": file.required(f"{family}.{'expert_' if mixture else ''}feed_forward_length"),
            "norm_eps": file.required(f"{family}.attention.layer_norm_rms_epsilon"),
            "rope": rope,
            "qk_norm": family in ("qwen3", "qwen3moe"),
            "qkv_bias": family == "qwen2" or "blk.0.attn_q.bias" in names,
            "o_bias": "blk.0.attn_output.bias" in names,
            "tied_head": "output.weight" not in names,
            "max_positions": longest_context(rope, file.required(f"{family}.context_length")),
            **(_experts(file, family) if mixture else {}),
        }
    )


def _experts(file: GGUFFile, family: str) -> dict[str, Any]:
    """Read a mixture.  llama.cpp always makes the weights of this family's chosen experts sum to 1."""
    chosen = file.required(f"{family}.expert_used_count")
    return {"experts": file.required(f"{family}.expert_count"), "experts_per_token": chosen, "norm_expert_weights": True}


def _unsupported_features(file: GGUFFile, family: str, head_width: int) -> list[str]:
    found = []
    if file.metadata(f"{family}.expert_count", 0) and family != "qwen3moe":
        found.append(f"experts ({family}.expert_count)")
    if file.metadata(f"{family}.attention.sliding_window", 0):
        found.append(f"sliding-window attention ({family}.attention.sliding_window)")
    value_width = file.metadata(f"{family}.attention.value_length", head_width)
    if value_width != head_width:
        found.append(f"values of another width than keys ({value_width} and {head_width})")
    rotated = file.metadata(f"{family}.rope.dimension_count", head_width)
    if rotated != head_width:
        found.append(f"partial rotary embedding ({rotated} of {head_width} channels)")
    kind = file.metadata(f"{family}.rope.scaling.type", "none")
    if kind not in ("none", "yarn") and not (kind == "linear" and _scaling_factor(file, family) == 1.0):
        found.append(f"rope scaling {kind!r} (none, yarn and llama3's {_FREQUENCY_FACTORS} are supported)")
    # The older spelling of linear scaling has no type.
    if kind == "none" and _scaling_factor(file, family) != 1.0:
        found.append(f"linear rope scaling ({family}.rope.scale_linear)")
    if kind == "yarn":
        if file.metadata(f"{family}.rope.scaling.yarn_ext_factor", 1.0) not in (1.0, -1.0):
            found.append(f"a partial YaRN blend ({family}.rope.scaling.yarn_ext_factor)")
        if file.metadata(f"{family}.rope.scaling.yarn_log_multiplier", 0.0):
            found.append(f"a YaRN log multiplier ({family}.rope.scaling.yarn_log_multiplier)")
    return found


def _scaling_factor(file: GGUFFile, family: str) -> float:
    legacy = file.metadata(f"{family}.rope.scale_linear", 1.0)
    return float(file.metadata(f"{family}.rope.scaling.factor", legacy)) or 1.0


def _rope(file: GGUFFile, family: str, head_width: int) -> dict[str, Any]:
    """Return the values of a `Rope` config."""
    theta = float(file.metadata(f"{family}.rope.freq_base", 10_000.0))
    yarn = file.metadata(f"{family}.rope.scaling.type", "none") == "yarn"
    if _FREQUENCY_FACTORS in file.shapes():
        if yarn:
            raise UnsupportedModelError(f"YaRN together with {_FREQUENCY_FACTORS} is not supported")
        return llama3_from_factors(file.read(_FREQUENCY_FACTORS), theta, head_width)
    if not yarn:
        return {"kind": "plain", "theta": theta}
    scaling = f"{family}.rope.scaling"
    factor = _scaling_factor(file, family)
    attention = file.metadata(f"{scaling}.attn_factor", 1.0) * file.metadata(f"{scaling}.yarn_attn_factor", 1.0)
    return {
        "kind": "yarn",
        "theta": theta,
        "factor": factor,
        "original_positions": file.metadata(f"{scaling}.original_context_length", file.metadata(f"{family}.context_length")),
        "beta_fast": file.metadata(f"{scaling}.yarn_beta_fast", 32.0),
        "beta_slow": file.metadata(f"{scaling}.yarn_beta_slow", 1.0),
        "attention_factor": attention * yarn_attention_factor(factor),
    }


def llama3_from_factors(factors: HostArray, theta: float, head_width: int) -> dict[str, Any]:
    """Recover Llama 3's scaling from the divisors of frequencies, `[H/2]`, that GGUF stores in its place.

    Plane i keeps its frequency (divisor 1), is slowed by `factor` (the largest divisor), or lies on the ramp between,
    where 1/divisor = 1/factor + (1 - 1/factor) s, and s = (original f_i / 2 pi - low) / (high - low) is a line over the
    frequency f_i.  The line fixes original, low and high up to one common scale, which cancels everywhere: low is 1, as in
    every published model.

    Raises:
      UnsupportedModelError: the divisors are not of this form, so the scaling would only be approximate.
    """
    half = head_width // 2
    refusal = UnsupportedModelError(f"{_FREQUENCY_FACTORS} is not the scaling of Llama 3 (kept, ramp and slowed planes)")
    if factors.shape != (half,) or not np.isfinite(factors).all() or factors.min() < 1:
        raise refusal
    divisors = factors.astype(np.float64)
    frequencies = theta ** (-np.arange(half, dtype=np.float64) / half)
    factor = float(str(factors.max()))
    if factor == 1.0:
        return {"kind": "plain", "theta": theta}
    ramp = (divisors > 1) & (divisors < divisors.max() * (1 - 1e-6))
    if np.count_nonzero(ramp) < 2:
        raise refusal
    s = (1 / divisors[ramp] - 1 / factor) / (1 - 1 / factor)
    slope, intercept = np.polyfit(frequencies[ramp], s, 1)
    if intercept >= 0 or slope <= 0:
        raise refusal
    low, high = 1.0, round(1 - 1 / float(intercept), 3)
    original = round(2 * math.pi * float(slope) * (high - low))
    # Rounded numbers that reproduce every divisor to float32's precision are the numbers; anything else is refused.
    turns = original * frequencies / (2 * math.pi)
    expected = 1 / (1 / factor + (1 - 1 / factor) * np.clip((turns - low) / (high - low), 0, 1))
    if original < 1 or not np.allclose(expected, divisors, rtol=2e-6, atol=0):
        raise refusal
    return {
        "kind": "llama3",
        "theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_positions": original,
    }


# ----------------------------------------------------------------------------------------------------------- tensors


def list_parameters(file: GGUFFile, config: DecoderConfig, dtype: str | None) -> list[StoredParameter]:
    """Check all tensors of the file, then list the parameters, which are still to be read.

    Raises:
      CheckpointError: listing every missing, misshaped or extra tensor, before anything is read.
      ConfigError: unknown dtype.
    """
    target = parameter_dtype(dtype)
    rules = gguf_rules(config)
    refuse_problems(file.path, find_problems(rules, config, file.shapes(), frozenset({_FREQUENCY_FACTORS})))
    return stored_parameters(rules, config, file, target)
