"""GGUF files: metadata -> `DecoderConfig`, dequantised tensors -> parameters, and the tokenizer's description.

What llama.cpp computes from a file is what is read here.  Where a feature shows only in whether a tensor is there, the
shapes of published models are asked too, and a doubt is an error.  Knows nothing of the hub, devices and tokenizer classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig, Llama3Rope, PlainRope
from psynth_jax.convert.gguf_file import GGUFFile
from psynth_jax.convert.hf import longest_context, yarn_attention_factor
from psynth_jax.convert.rules import (
    TensorSource,
    find_problems,
    gguf_rules,
    parameter_dtype,
    refuse_problems,
)
from psynth_jax.convert.stored import StoredParameter, stored_parameters
from psynth_jax.errors import CheckpointError, ConfigError, UnsupportedModelError
from psynth_jax.gguf_metadata import LARGEST_COUNT
from psynth_jax.presets import PRESETS

__all__ = ["ARCHITECTURES", "GGUFFile", "list_parameters", "llama3_from_factors", "read_config"]

# theirs -> family
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma3": "gemma3_text",
}
_FREQUENCY_FACTORS = "rope_freqs.weight"
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_NORM = "norm.weight"  # how the names of all norms end
_SHAPE = ("family", "width", "layers", "heads", "kv_heads", "head_width", "mlp_width", "experts")  # of a published model

# Published models beside the presets that have a head of their own: family, width, layers.
_UNTIED = {
    ("llama", 4096, 32): "Llama 2 7B",
    ("llama", 5120, 40): "Llama 2 13B",
    ("llama", 8192, 80): "Llama 2 and 3 70B",
    ("qwen2", 5120, 48): "Qwen2.5 14B",
    ("qwen2", 5120, 64): "Qwen2.5 32B",
    ("qwen2", 8192, 80): "Qwen2.5 72B",
}

# What llama.cpp knows of Gemma 3 beyond the metadata.
_GEMMA_GLOBAL_EVERY = 6
_GEMMA_LOCAL_THETA = 10_000.0
_GEMMA_27B_LAYERS = 62  # this one scales queries by width / heads, the others by the width of a head


# ------------------------------------------------------------------------------------------------------------- config


def read_config(file: GGUFFile) -> DecoderConfig:
    """Turn GGUF metadata into a `DecoderConfig`.

    Raises `UnsupportedModelError` naming what is not implemented, and `CheckpointError` for metadata that is missing or of
    the wrong type, and for tensors whose absence leaves in doubt which model this is.
    """
    values, shapes = file.values, file.shapes()
    family = values.text("general.architecture")
    if family not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"GGUF architecture {family!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
    layers = values.count(f"{family}.block_count", most=max(len(shapes), 1))  # every layer has tensors
    heads = _of_every_layer(file, f"{family}.attention.head_count", layers)
    width = values.count(f"{family}.embedding_length")
    kv_heads = _of_every_layer(file, f"{family}.attention.head_count_kv", layers, heads)
    if heads % kv_heads:
        raise values.wrong(f"{family}.attention.head_count_kv", f"a divisor of the {heads} heads")
    head_width = values.count(f"{family}.attention.key_length", width // heads)
    if head_width < 2 or head_width % 2:
        key = "attention.key_length" if f"{family}.attention.key_length" in values else "attention.head_count"
        raise values.wrong(f"{family}.{key}", f"one that makes heads of an even width, and {head_width} is none")
    unsupported = _unsupported_features(file, family, head_width)
    if unsupported:
        raise UnsupportedModelError("this model uses what is not supported: " + "; ".join(unsupported))
    if _EMBEDDING not in shapes:
        refuse_problems(file.path, [f"missing {_EMBEDDING}"])
    mixture, gemma = family == "qwen3moe", family == "gemma3"
    rope = _rope(file, family, head_width)
    mlp_width = f"{family}.{'expert_' if mixture else ''}feed_forward_length"
    config = DecoderConfig.parse(
        {
            "family": ARCHITECTURES[family],
            "vocab_size": shapes[_EMBEDDING][0],
            "width": width,
            "layers": layers,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_width": head_width,
            "mlp_width": _of_every_layer(file, mlp_width, layers),
            "norm_eps": values.number(f"{family}.attention.layer_norm_rms_epsilon", above=0.0),
            "rope": rope,
            "qk_norm": family in ("qwen3", "qwen3moe", "gemma3"),
            "qkv_bias": family == "qwen2" or _in_any_layer(shapes, layers, "attn_q.bias", "attn_k.bias", "attn_v.bias"),
            "o_bias": _in_any_layer(shapes, layers, "attn_output.bias"),
            "tied_head": _HEAD not in shapes,
            "max_positions": _longest_context(file, family, rope),
            **(_experts(file, family) if mixture else {}),
            **(_gemma(file, family, layers, head_width, width // heads) if gemma else {}),
        }
    )
    _refuse_doubts(file, config)
    return config


def _longest_context(file: GGUFFile, family: str, rope: Mapping[str, Any]) -> int:
    try:
        return longest_context(rope, file.values.count(f"{family}.context_length"))
    except ConfigError:
        right = f"one that makes at most {LARGEST_COUNT} positions"
        raise file.values.wrong(f"{family}.rope.scaling.factor", right) from None


def _of_every_layer(file: GGUFFile, key: str, layers: int, *default: int) -> int:
    """Return a count that may be an array, one for each layer; they must agree."""
    if not isinstance(file.values.get(key), list):
        return file.values.count(key, *default)
    counts = file.values.counts(key, least=1)
    if len(counts) != layers:
        raise file.values.wrong(key, f"one whole number, or one for each of {layers} layers")
    if len(set(counts)) > 1:
        raise UnsupportedModelError(f"sizes that differ from layer to layer ({key}) are not supported")
    return counts[0]


def _in_any_layer(shapes: Mapping[str, Any], layers: int, *names: str) -> bool:
    """Whether a layer has one of these tensors; where another layer lacks it, it is missing and not absent by design."""
    wanted = {f"blk.{layer}.{name}" for layer in range(layers) for name in names}
    return not wanted.isdisjoint(shapes)


def _refuse_doubts(file: GGUFFile, config: DecoderConfig) -> None:
    """Raise `CheckpointError` where what is not in the file is known to belong to the model.

    A file without a head is a tied model to llama.cpp, and one without frequency factors has plain rope.  A published model
    of the same shape that has them says that this file has lost them.
    """
    if config.family == "qwen3_moe" and config.tied_head:
        refuse_problems(file.path, [f"missing {_HEAD}: no model of this family has a tied head"])
    untied = _UNTIED.get((config.family, config.width, config.layers))
    if config.tied_head and untied is not None:
        refuse_problems(file.path, [f"missing {_HEAD}: {untied}, which has these sizes, has a head of its own"])
    for name, known in PRESETS.items():
        published = known.config
        if any(getattr(config, field) != getattr(published, field) for field in _SHAPE):
            continue
        if config.tied_head and not published.tied_head:
            refuse_problems(file.path, [f"missing {_HEAD}: {name}, which has these sizes, has a head of its own"])
        rope = isinstance(published.rope, Llama3Rope) and isinstance(config.rope, PlainRope)
        if rope and (config.rope.theta, config.max_positions) == (published.rope.theta, published.max_positions):
            problem = f"missing {_FREQUENCY_FACTORS}: {name}, which has these sizes and this context, scales its rope"
            refuse_problems(file.path, [problem])


def _experts(file: GGUFFile, family: str) -> dict[str, Any]:
    """Read a mixture.  llama.cpp always makes the weights of this family's chosen experts sum to 1."""
    experts = file.values.count(f"{family}.expert_count")
    return {
        "experts": experts,
        "experts_per_token": file.values.count(f"{family}.expert_used_count", most=experts),
        "norm_expert_weights": True,
    }


def _gemma(file: GGUFFile, family: str, layers: int, head_width: int, scaled_by: int) -> dict[str, Any]:
    """Read what only Gemma 3 has."""
    window = file.values.count(f"{family}.attention.sliding_window", least=0)
    theta = file.values.number(f"{family}.rope.freq_base_swa", _GEMMA_LOCAL_THETA, above=0.0)
    every = _global_every(file, family, layers)
    local = {"window": window, "global_every": every, "rope": {"kind": "plain", "theta": theta}}
    scale = (scaled_by if layers == _GEMMA_27B_LAYERS else head_width) ** -0.5
    return {
        "activation": "gelu_tanh",
        "query_scale": file.values.number(f"{family}.attention.scale", scale, above=0.0),
        "scaled_embedding": True,
        "norms_from_one": True,
        "norms_after": True,
        "local": local if window and every > 1 else None,
    }


def _global_every(file: GGUFFile, family: str, layers: int) -> int:
    """Return n where every n-th layer sees everything and the others a window."""
    key = f"{family}.attention.sliding_window_pattern"
    pattern = file.values.get(key)
    if not isinstance(pattern, list):
        return file.values.count(key, _GEMMA_GLOBAL_EVERY)
    if len(pattern) != layers or not set(map(type, pattern)) <= {bool, int} or not set(pattern) <= {0, 1}:
        raise file.values.wrong(key, f"a whole number, or true or false for each of {layers} layers")
    sees_all = [not slides for slides in pattern]
    every = sees_all.index(True) + 1 if True in sees_all else layers + 1
    if sees_all != [(layer + 1) % every == 0 for layer in range(layers)]:
        raise UnsupportedModelError(f"local and global layers that do not alternate evenly ({key}) are not supported")
    return every


def _unsupported_features(file: GGUFFile, family: str, head_width: int) -> list[str]:
    found, values = [], file.values
    if values.count(f"{family}.expert_count", 0, least=0) and family != "qwen3moe":
        found.append(f"experts ({family}.expert_count)")
    if family == "gemma3":
        caps = [f"{family}.{name}_logit_softcapping" for name in ("attn", "final")]
        found += [f"a soft cap ({key})" for key in caps if values.number(key, 0.0)]
    elif values.count(f"{family}.attention.sliding_window", 0, least=0):
        found.append(f"sliding-window attention ({family}.attention.sliding_window)")
    usual = head_width**-0.5
    scale = values.number(f"{family}.attention.scale", usual) or usual  # 0: it is the usual one
    if family != "gemma3" and not math.isclose(scale, usual, rel_tol=1e-6):
        found.append(f"another scale of attention ({family}.attention.scale)")
    if not values.flag(f"{family}.attention.causal", True):
        found.append(f"attention to later tokens ({family}.attention.causal)")
    value_width = values.count(f"{family}.attention.value_length", head_width)
    if value_width != head_width:
        found.append(f"values of another width than keys ({value_width} and {head_width})")
    rotated = values.count(f"{family}.rope.dimension_count", head_width)
    if rotated != head_width:
        found.append(f"partial rotary embedding ({rotated} of {head_width} channels)")
    return found + _unsupported_rope(file, family)


def _unsupported_rope(file: GGUFFile, family: str) -> list[str]:
    found, values = [], file.values
    kind, factor = _scaling(file, family)
    if kind not in ("none", "linear", "yarn"):
        found.append(f"rope scaling {kind!r} (none, linear, yarn and llama3's {_FREQUENCY_FACTORS} are supported)")
    if _FREQUENCY_FACTORS in file.shapes() and (kind == "yarn" or (kind == "linear" and factor != 1.0)):
        found.append(f"rope scaling {kind!r} together with {_FREQUENCY_FACTORS}")
    if kind == "yarn":
        if family == "gemma3":
            found.append("YaRN in a model with local layers")
        if values.number(f"{family}.rope.scaling.yarn_ext_factor", 1.0) not in (1.0, -1.0):
            found.append(f"a partial YaRN blend ({family}.rope.scaling.yarn_ext_factor)")
        if values.number(f"{family}.rope.scaling.yarn_log_multiplier", 0.0):
            found.append(f"a YaRN log multiplier ({family}.rope.scaling.yarn_log_multiplier)")
    return found


def _scaling(file: GGUFFile, family: str) -> tuple[str, float]:
    """Return kind and factor of rope scaling, 1 where there is none."""
    kind = file.values.text(f"{family}.rope.scaling.type", "linear")  # the older spelling has a factor and no type
    key = f"{family}.rope.scaling.factor"
    if key not in file.values:
        key = f"{family}.rope.scale_linear"
    factor = file.values.number(key, 0.0)
    if factor < 0:
        raise file.values.wrong(key, "a finite number above 0")
    return kind, factor or 1.0


def _rope(file: GGUFFile, family: str, head_width: int) -> dict[str, Any]:
    """Return the values of a `Rope` config."""
    values = file.values
    # Gemma's converter always writes it, and what llama.cpp takes in its place is no Gemma's.
    key = f"{family}.rope.freq_base"
    theta = values.number(key, above=0.0) if family == "gemma3" else values.number(key, 10_000.0, above=0.0)
    kind, factor = _scaling(file, family)
    if _FREQUENCY_FACTORS in file.shapes():
        return llama3_from_factors(file.read(_FREQUENCY_FACTORS), theta, head_width)
    if kind == "linear" and factor != 1.0:
        return {"kind": "linear", "theta": theta, "factor": factor}
    if kind != "yarn":
        return {"kind": "plain", "theta": theta}
    scaling = f"{family}.rope.scaling"
    if factor < 1:
        raise values.wrong(f"{scaling}.factor", "at least 1, where the type is yarn")
    attention = 1.0
    for name in ("attn_factor", "yarn_attn_factor"):
        attention *= values.number(f"{scaling}.{name}", 1.0, above=0.0)
    return {
        "kind": "yarn",
        "theta": theta,
        "factor": factor,
        "original_positions": values.count(f"{scaling}.original_context_length", values.count(f"{family}.context_length")),
        "beta_fast": values.number(f"{scaling}.yarn_beta_fast", 32.0, above=0.0),
        "beta_slow": values.number(f"{scaling}.yarn_beta_slow", 1.0, above=0.0),
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
    centred = frequencies[ramp] - frequencies[ramp].mean()
    spread = float(centred @ centred)
    if spread == 0.0:  # a theta of 1, for one
        raise refusal
    slope = float(centred @ s) / spread
    intercept = float(s.mean() - slope * frequencies[ramp].mean())
    if not intercept < 0 < slope or not math.isfinite(1 / intercept):
        raise refusal
    low, high = 1.0, round(1 - 1 / intercept, 3)
    positions = 2 * math.pi * slope * (high - low)
    if not 0.5 < positions <= LARGEST_COUNT:
        raise refusal
    original = round(positions)
    # Rounded numbers that reproduce every divisor to float32's precision are the numbers; anything else is refused.
    turns = original * frequencies / (2 * math.pi)
    expected = 1 / (1 / factor + (1 - 1 / factor) * np.clip((turns - low) / (high - low), 0, 1))
    if not np.allclose(expected, divisors, rtol=2e-6, atol=0):
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


class _NormsFromOne:
    """A source whose norms are stored as 1 + weight, as Gemma's are in GGUF files; ours are weights."""

    def __init__(self, source: TensorSource):
        self._source = source
        self.path, self.shapes, self.dtype = source.path, source.shapes, source.dtype

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read one tensor, or a piece of it."""
        values = self._source.read(name, index)
        return values - np.float32(1) if name.endswith(_NORM) else values


def list_parameters(file: GGUFFile, config: DecoderConfig, dtype: str | None) -> list[StoredParameter]:
    """Check all tensors of the file, then list the parameters, which are still to be read.

    Raises:
      CheckpointError: listing every missing, misshaped or extra tensor, before anything is read.
      ConfigError: unknown dtype.
    """
    target = parameter_dtype(dtype)
    rules = gguf_rules(config)
    unused = frozenset() if config.norms_from_one else frozenset({_FREQUENCY_FACTORS})
    refuse_problems(file.path, find_problems(rules, config, file.shapes(), unused))
    tokens = file.values.texts("tokenizer.ggml.tokens", [])
    if len(tokens) > config.vocab_size:
        raise CheckpointError(f"{file.path}: {len(tokens)} tokens, but {_EMBEDDING} has {config.vocab_size} rows")
    source: TensorSource = _NormsFromOne(file) if config.norms_from_one else file
    return stored_parameters(rules, config, source, target)
