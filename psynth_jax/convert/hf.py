"""Hugging Face model directories: config.json -> `DecoderConfig`, safetensors -> parameters, end tokens.

Only safetensors are read.  Where config.json is silent, the value is what transformers' class of that family defaults to.
Knows nothing of the hub, of devices and of tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig
from psynth_jax.convert.rules import (
    StoredParameter,
    find_problems,
    hf_rules,
    parameter_dtype,
    refuse_problems,
    stored_parameters,
)
from psynth_jax.convert.safetensors_file import SafetensorsFile, read_json
from psynth_jax.errors import CheckpointError, ConfigError, UnsupportedModelError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
}
_QWEN_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "qwen2": _QWEN_DEFAULTS,
    "qwen3": {**_QWEN_DEFAULTS, "head_dim": 128},
    "qwen3_moe": {
        **_QWEN_DEFAULTS,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
    "gemma3_text": {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_local_base_freq": 10_000.0,
        "rope_theta": 1_000_000.0,
    },
}
_DEFAULT_THETA = 10_000.0
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


# ------------------------------------------------------------------------------------------------------------- config


def config_from_hf(raw: Mapping[str, Any]) -> DecoderConfig:
    """Turn the contents of a config.json into a `DecoderConfig`; reads what transformers 4 and transformers 5 write.

    Raises `UnsupportedModelError`, naming every feature that is not implemented, and `ConfigError` for values of the
    wrong type or that contradict each other.
    """
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise UnsupportedModelError(f"model_type {family!r} is not supported; supported are {', '.join(ARCHITECTURES)}")
    architectures = raw.get("architectures") or [ARCHITECTURES[family]]
    if ARCHITECTURES[family] not in architectures:
        raise UnsupportedModelError(
            f"architecture {', '.join(map(str, architectures))} is not supported; {ARCHITECTURES[family]} is"
        )
    fields = _with_defaults(family, raw)
    unsupported = _unsupported_features(fields)
    if unsupported:
        raise UnsupportedModelError("this model uses what is not supported: " + "; ".join(unsupported))
    rope, mixture, gemma = _rope(fields), family == "qwen3_moe", family == "gemma3_text"
    bias = fields["attention_bias"]
    return DecoderConfig.parse(
        {
            "family": family,
            "vocab_size": fields["vocab_size"],
            "width": fields["hidden_size"],
            "layers": fields["num_hidden_layers"],
            "heads": fields["num_attention_heads"],
            "kv_heads": fields["num_key_value_heads"],
            "head_width": fields["head_dim"],
            "mlp_width": fields["moe_intermediate_size" if mixture else "intermediate_size"],
            "norm_eps": fields["rms_norm_eps"],
            "rope": rope,
            "qk_norm": family in ("qwen3", "qwen3_moe", "gemma3_text"),
            "qkv_bias": True if family == "qwen2" else bias,
            "o_bias": False if family == "qwen2" else bias,
            "tied_head": fields["tie_word_embeddings"],
            "max_positions": longest_context(rope, fields["max_position_embeddings"]),
            **(_experts(fields) if mixture else {}),
            **(_gemma(fields) if gemma else {}),
        }
    )


def _experts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read a mixture; transformers 5 calls the number of experts `num_local_experts`."""
    return {
        "experts": fields.get("num_experts", fields.get("num_local_experts", 128)),
        "experts_per_token": fields["num_experts_per_tok"],
        "norm_expert_weights": fields["norm_topk_prob"],
    }


def _check_gemma(fields: Mapping[str, Any]) -> None:
    for key in ("query_pre_attn_scalar", "sliding_window", "sliding_window_pattern"):
        if not isinstance(fields[key], int | float) or fields[key] <= 0:
            raise ConfigError(f"{key} must be a positive number, not {fields[key]!r}")
    if not isinstance(fields.get("layer_types", []), list):
        raise ConfigError(f"layer_types must be a list, not {fields['layer_types']!r}")


def _gemma(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read what only Gemma 3 has."""
    every = _global_every(fields)
    parameters = _rope_parameters(fields, "sliding_attention")
    theta = parameters.get("rope_theta") or fields["rope_local_base_freq"]
    local = {"window": fields["sliding_window"], "global_every": every, "rope": {"kind": "plain", "theta": theta}}
    return {
        "activation": "gelu_tanh",
        "query_scale": fields["query_pre_attn_scalar"] ** -0.5,
        "scaled_embedding": True,
        "norms_from_one": True,
        "norms_after": True,
        "local": local if every > 1 else None,
    }


def _global_every(fields: Mapping[str, Any]) -> int:
    """Return n where every n-th layer sees everything and the others a window; 1: there is no window; 0: no such pattern."""
    kinds, layers = fields.get("layer_types"), fields["num_hidden_layers"]
    if not kinds:
        return min(int(fields["sliding_window_pattern"]), layers + 1)
    if set(kinds) == {"full_attention"}:
        return 1
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else layers + 1
    expected = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]
    return every if kinds == expected else 0


def _with_defaults(family: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what config.json leaves out.  A null counts as left out, except that null key/value heads mean N."""
    given = {key: value for key, value in raw.items() if value is not None}
    fields = {**_DEFAULTS, **_FAMILY_DEFAULTS[family], **given, "model_type": family}
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
        if type(fields[key]) is not int or fields[key] < 1:
            raise ConfigError(f"{key} must be a positive whole number, not {fields[key]!r}")
    if family == "gemma3_text":
        _check_gemma(fields)
    if raw.get("num_key_value_heads", 0) is None:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    fields.setdefault("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
    if "sliding_window" in raw and raw["sliding_window"] is None:
        fields["sliding_window"] = None
    return fields


def _unsupported_features(fields: Mapping[str, Any]) -> list[str]:
    """Name every feature that would make this decoder compute something else than the model."""
    found = []
    if fields.get("quantization_config"):
        described = fields["quantization_config"]
        method = described.get("quant_method", "unknown method") if isinstance(described, Mapping) else described
        found.append(f"quantised weights (quantization_config: {method})")
    gemma = fields["model_type"] == "gemma3_text"
    key, known = ("hidden_activation", ("gelu_pytorch_tanh",)) if gemma else ("hidden_act", ("silu", "swish"))
    if fields[key] not in known:
        found.append(f"{key} {fields[key]!r} ({known[0]} is supported)")
    if fields.get("decoder_sparse_step", 1) != 1 or fields.get("mlp_only_layers"):
        found.append("layers without experts among layers with them (decoder_sparse_step, mlp_only_layers)")
    if fields.get("mlp_bias"):
        found.append("biases in the MLP (mlp_bias)")
    if gemma:
        found += _unsupported_in_gemma(fields)
    elif _slides(fields):
        found.append("sliding-window attention (use_sliding_window, layer_types)")
    elif set(fields.get("layer_types") or ()) - {"full_attention"}:
        others = sorted(set(fields["layer_types"]) - {"full_attention"})
        found.append(f"attention that is not full (layer_types: {', '.join(map(str, others))})")
    uses_rope = fields.get("no_rope_layers")  # 1 where a layer has positions, in spite of the name
    if (uses_rope and not (isinstance(uses_rope, list) and all(uses_rope))) or (
        fields.get("no_rope_layer_interval") and "no_rope_layers" not in fields
    ):
        found.append("layers without positions (no_rope_layers)")
    if fields.get("rope_interleaved"):
        found.append("interleaved rotary embedding (rope_interleaved)")
    if fields.get("use_mrope"):
        found.append("multimodal rotary embedding (use_mrope)")
    rope = _rope_parameters(fields)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        found.append(f"rope type {kind!r} (default, linear, llama3 and yarn are supported)")
    partial = rope.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1.0):
        found.append(f"partial rotary embedding (partial_rotary_factor {partial})")
    return found


def _unsupported_in_gemma(fields: Mapping[str, Any]) -> list[str]:
    found = [f"a soft cap ({name})" for name in ("attn_logit_softcapping", "final_logit_softcapping") if fields.get(name)]
    if fields.get("use_bidirectional_attention"):
        found.append("attention to later tokens (use_bidirectional_attention)")
    if not _global_every(fields):
        found.append("local and global layers that do not alternate evenly (layer_types)")
    local = _rope_parameters(fields, "sliding_attention")
    kind = local.get("rope_type") or local.get("type") or "default"
    if kind != "default":
        found.append(f"rope type {kind!r} in local layers")
    return found


def _slides(fields: Mapping[str, Any]) -> bool:
    """Whether a layer attends to a window: layers from max_window_layers on, unless layer_types says which."""
    if fields.get("layer_types"):
        return "sliding_attention" in fields["layer_types"]
    windowed = fields.get("use_sliding_window") and fields.get("sliding_window") is not None
    return bool(windowed) and fields["num_hidden_layers"] > fields.get("max_window_layers", 0)


def _rope_parameters(fields: Mapping[str, Any], layers: str = "full_attention") -> dict[str, Any]:
    """Return the one dict that describes the rotary embedding of a kind of layers, in either transformers' spelling.

    The older spelling has none for local layers.
    """
    parameters = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"rope_scaling or rope_parameters must be an object, not {parameters!r}")
    if any(isinstance(parameters.get(kind), Mapping) for kind in ("full_attention", "sliding_attention")):
        parameters = parameters.get(layers) or {}
    elif layers != "full_attention":
        parameters = {}
    return {key: value for key, value in parameters.items() if value is not None}


def _rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a `Rope` config."""
    parameters = _rope_parameters(fields)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = parameters.get("rope_theta") or fields.get("rope_theta") or _DEFAULT_THETA
    if kind == "default":
        return {"kind": "plain", "theta": theta}
    if kind == "linear":
        factor = parameters.get("factor")
        if not isinstance(factor, int | float) or factor < 1:
            raise ConfigError(f"the factor of linear rope parameters must be a number of at least 1, not {factor!r}")
        return {"kind": "linear", "theta": theta, "factor": factor}
    declared = fields["max_position_embeddings"]
    # A value beside the rope parameters wins over one inside them; that is what transformers does.
    original = fields.get("original_max_position_embeddings") or parameters.get("original_max_position_embeddings", declared)
    if isinstance(original, float) and original.is_integer():
        original = int(original)
    if not isinstance(original, int | float) or original <= 0:
        raise ConfigError(f"original_max_position_embeddings must be a positive number, not {original!r}")
    if kind == "llama3":
        missing = [key for key in ("factor", "low_freq_factor", "high_freq_factor") if key not in parameters]
        if missing:
            raise ConfigError(f"rope parameters of type llama3 lack {', '.join(missing)}")
        scaling = {key: parameters[key] for key in ("factor", "low_freq_factor", "high_freq_factor")}
        return {"kind": "llama3", "theta": theta, **scaling, "original_positions": original}
    factor = parameters.get("factor", None if original == declared else declared / original)
    if not isinstance(factor, int | float) or factor < 1:
        raise ConfigError(f"the factor of yarn rope parameters must be a number of at least 1, not {factor!r}")
    return {
        "kind": "yarn",
        "theta": theta,
        "factor": factor,
        "original_positions": original,
        "beta_fast": parameters.get("beta_fast") or 32.0,
        "beta_slow": parameters.get("beta_slow") or 1.0,
        "attention_factor": parameters["attention_factor"]
        if "attention_factor" in parameters
        else yarn_attention_factor(factor, parameters.get("mscale"), parameters.get("mscale_all_dim")),
        "truncate": parameters.get("truncate", True),
    }


def yarn_attention_factor(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """Return YaRN's attention factor where the config gives none: `0.1 ln(factor) + 1`, or the ratio of two such terms."""

    def term(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return term(mscale) / term(mscale_all_dim) if mscale and mscale_all_dim else term(1.0)


def longest_context(rope: Mapping[str, Any], declared: int) -> int:
    """Return the positions a model can use: the declared ones, or what YaRN stretches its original ones to."""
    return max(declared, int(rope["original_positions"] * rope["factor"])) if rope["kind"] == "yarn" else declared


def read_config(directory: Path) -> DecoderConfig:
    """Read config.json of a model directory.  Raises as `config_from_hf` does, and `CheckpointError` without the file."""
    return config_from_hf(read_json(directory / "config.json"))


def read_end_tokens(directory: Path) -> frozenset[int]:
    """Return every end token of generation_config.json, or those of config.json where it names none."""
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            ids = read_json(directory / name).get("eos_token_id")
            ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
            if not all(type(token) is int for token in ids):
                raise CheckpointError(f"eos_token_id in {directory / name} must be a token id or a list of them, not {ids}")
            if ids:
                return frozenset(ids)
    return frozenset()


# ----------------------------------------------------------------------------------------------------------- tensors


class SafetensorsDirectory:
    """The safetensors files of one model, single or sharded, as a `rules.TensorSource`."""

    def __init__(self, directory: Path):
        """Read the headers.  Raises `CheckpointError` for absent, truncated and foreign files."""
        self.path = directory
        self._file_of: dict[str, SafetensorsFile] = {}
        self.problems: list[str] = []
        for path in _weight_files(directory):
            file = SafetensorsFile(path)
            self.problems += file.problems
            for name in file.shapes:
                if name in self._file_of:
                    self.problems.append(f"{name} is in {self._file_of[name].path.name} and in {path.name}")
                self._file_of[name] = file

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of every tensor."""
        return {name: file.shapes[name] for name, file in self._file_of.items()}

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype that a tensor is stored in."""
        return self._file_of[name].dtypes[name]

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read one tensor in the dtype it is stored in, or only a piece of it."""
        return self._file_of[name].read(name, index)

    def pick(self, name: str, places: tuple[HostArray, ...]) -> HostArray:
        """Read single elements of a tensor, an index array for each axis."""
        return self._file_of[name].pick(name, places)


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _WEIGHTS).is_file():
        return [directory / _WEIGHTS]
    if (directory / _INDEX).is_file():
        weight_map = read_json(directory / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{directory / _INDEX} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise CheckpointError(f"{directory / _INDEX} points outside its directory: {', '.join(outside)}")
        absent = [name for name in names if not (directory / name).is_file()]
        if absent:
            raise CheckpointError(f"{directory} lacks {', '.join(absent)}, which {_INDEX} lists")
        return [directory / name for name in names]
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise CheckpointError(
            f"{directory} has its weights only as a torch pickle, and reading one can run code; convert them to {_WEIGHTS}"
        )
    raise CheckpointError(f"{directory} has neither {_WEIGHTS} nor {_INDEX}")


def _ignored(config: DecoderConfig) -> frozenset[str]:
    """Name what may be there and is not used: frequency buffers that old versions of transformers saved."""
    per_layer = (f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(config.layers))
    return frozenset({"model.rotary_emb.inv_freq", *per_layer, *([_HEAD] if config.tied_head else [])})


def _tied_head_problem(config: DecoderConfig, source: SafetensorsDirectory) -> list[str]:
    """Say so where a tied model stores a head that is not its embedding."""
    shapes = source.shapes()
    if not config.tied_head or _HEAD not in shapes or _EMBEDDING not in shapes:
        return []
    if shapes[_HEAD] == shapes[_EMBEDDING] and np.array_equal(source.read(_HEAD), source.read(_EMBEDDING)):
        return []
    return [f"{_HEAD} {list(shapes[_HEAD])} differs from {_EMBEDDING}, though the config says that they are tied"]


def list_parameters(directory: str | Path, config: DecoderConfig, dtype: str | None) -> list[StoredParameter]:
    """Check all tensors of a model directory, then list the parameters, which are still to be read.

    Raises:
      CheckpointError: listing every missing, misshaped, extra or unusable tensor, before anything is read.
      ConfigError: unknown dtype.
    """
    target = parameter_dtype(dtype)
    source = SafetensorsDirectory(Path(directory))
    rules = hf_rules(config)
    problems = find_problems(rules, config, source.shapes(), _ignored(config)) + source.problems
    problems += _tied_head_problem(config, source)
    refuse_problems(directory, problems)
    return stored_parameters(rules, config, source, target)
