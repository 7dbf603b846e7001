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
from psynth_jax.config import MOST, DecoderConfig
from psynth_jax.convert.fields import Fields
from psynth_jax.convert.no_model import weights_instead
from psynth_jax.convert.rules import (
    find_problems,
    hf_rules,
    parameter_dtype,
    refuse_problems,
)
from psynth_jax.convert.safetensors_file import SafetensorsFile, read_json
from psynth_jax.convert.stored import StoredParameter, stored_parameters
from psynth_jax.errors import CheckpointError, ConfigError, UnsupportedModelError, listing, shown
from psynth_jax.files import refuse_special

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
_ROWS = 4096  # of two tables that are compared at once


# ------------------------------------------------------------------------------------------------------------- config


def config_from_hf(raw: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """Turn the contents of a config.json into a `DecoderConfig`; reads what transformers 4 and transformers 5 write.

    Raises `UnsupportedModelError`, naming every feature that is not implemented, and `ConfigError` for values of the
    wrong type or that contradict each other; `where` names the file in it.
    """
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise UnsupportedModelError(f"model_type {shown(family)} is not supported; supported are {', '.join(ARCHITECTURES)}")
    fields = _with_defaults(family, raw, where)
    architectures = fields.items("architectures", str) or [ARCHITECTURES[family]]
    if ARCHITECTURES[family] not in architectures:
        raise UnsupportedModelError(
            f"architecture {listing(architectures, ', ')} is not supported; {ARCHITECTURES[family]} is"
        )
    unsupported = _unsupported_features(family, fields)
    if unsupported:
        raise UnsupportedModelError(f"this model uses what is not supported: {listing(unsupported)}")
    rope, mixture, gemma = _rope(fields), family == "qwen3_moe", family == "gemma3_text"
    heads, width = fields.count("num_attention_heads"), fields.count("hidden_size")
    bias = fields.flag("attention_bias")
    return DecoderConfig.parse(
        {
            "family": family,
            "vocab_size": fields.count("vocab_size"),
            "width": width,
            "layers": fields.count("num_hidden_layers"),
            "heads": heads,
            "kv_heads": fields.count("num_key_value_heads", heads),
            "head_width": fields.count("head_dim", max(width // heads, 1)),
            "mlp_width": fields.count("moe_intermediate_size" if mixture else "intermediate_size"),
            "norm_eps": fields.number("rms_norm_eps", above=0),
            "rope": rope,
            "qk_norm": family in ("qwen3", "qwen3_moe", "gemma3_text"),
            "qkv_bias": True if family == "qwen2" else bias,
            "o_bias": False if family == "qwen2" else bias,
            "tied_head": fields.flag("tie_word_embeddings"),
            "max_positions": longest_context(rope, fields.count("max_position_embeddings")),
            **(_experts(fields) if mixture else {}),
            **(_gemma(fields) if gemma else {}),
        }
    )


def _experts(fields: Fields) -> dict[str, Any]:
    """Read a mixture; transformers 5 calls the number of experts `num_local_experts`."""
    key = "num_experts" if "num_experts" in fields else "num_local_experts"
    return {
        "experts": fields.count(key, 128),
        "experts_per_token": fields.count("num_experts_per_tok"),
        "norm_expert_weights": fields.flag("norm_topk_prob"),
    }


def _gemma(fields: Fields) -> dict[str, Any]:
    """Read what only Gemma 3 has."""
    every = _global_every(fields)
    local = None
    if every > 1:
        theta = fields.number("rope_local_base_freq", above=1)
        theta = _rope_parameters(fields, "sliding_attention").number("rope_theta", theta, above=1)
        window = fields.count("sliding_window")
        local = {"window": window, "global_every": every, "rope": {"kind": "plain", "theta": theta}}
    return {
        "activation": "gelu_tanh",
        "query_scale": fields.number("query_pre_attn_scalar", above=0) ** -0.5,
        "scaled_embedding": True,
        "norms_from_one": True,
        "norms_after": True,
        "local": local,
    }


def _global_every(fields: Fields) -> int:
    """Return n where every n-th layer sees everything and the others a window; 1: there is no window; 0: no such pattern."""
    kinds, layers = fields.items("layer_types", str), fields.count("num_hidden_layers")
    if not kinds:
        return min(fields.count("sliding_window_pattern"), layers + 1)
    if set(kinds) == {"full_attention"}:
        return 1
    if len(kinds) != layers:
        return 0
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else layers + 1
    expected = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]
    return every if kinds == expected else 0


def _with_defaults(family: str, raw: Mapping[str, Any], where: str) -> Fields:
    """Fill in what config.json leaves out.  A null counts as left out, with two exceptions.

    Null key/value heads mean as many as there are heads, and a null window means that there is none.
    """
    given = Fields(raw, where)
    fields = Fields({**_DEFAULTS, **_FAMILY_DEFAULTS[family], **given.values}, where)
    for key in ("num_key_value_heads", "sliding_window"):
        if key in raw and raw[key] is None:
            fields.values.pop(key, None)
    return fields


def _unsupported_features(family: str, fields: Fields) -> list[str]:
    """Name every feature that would make this decoder compute something else than the model."""
    found = []
    if fields.values.get("quantization_config"):
        described = fields.values["quantization_config"]
        method = described.get("quant_method", "unknown method") if isinstance(described, Mapping) else shown(described)
        found.append(f"quantised weights (quantization_config: {method if isinstance(method, str) else shown(method)})")
    gemma = family == "gemma3_text"
    key, known = ("hidden_activation", ("gelu_pytorch_tanh",)) if gemma else ("hidden_act", ("silu", "swish"))
    activation = fields.text(key, known[0])
    if activation not in known:
        found.append(f"{key} {shown(activation)} ({known[0]} is supported)")
    if fields.count("decoder_sparse_step", 1, least=0) != 1 or fields.items("mlp_only_layers"):
        found.append("layers without experts among layers with them (decoder_sparse_step, mlp_only_layers)")
    if fields.flag("mlp_bias"):
        found.append("biases in the MLP (mlp_bias)")
    kinds = fields.items("layer_types", str)
    if gemma:
        found += _unsupported_in_gemma(fields)
    elif _slides(fields):
        found.append("sliding-window attention (use_sliding_window, layer_types)")
    elif set(kinds) - {"full_attention"}:
        others = sorted(set(kinds) - {"full_attention"})
        found.append(f"attention that is not full (layer_types: {listing(others, ', ')})")
    uses_rope = fields.items("no_rope_layers", int)  # 1 where a layer has positions, in spite of the name
    interval = fields.count("no_rope_layer_interval", 0, least=0)
    if not all(uses_rope) or (interval and "no_rope_layers" not in fields):
        found.append("layers without positions (no_rope_layers)")
    if fields.flag("rope_interleaved"):
        found.append("interleaved rotary embedding (rope_interleaved)")
    if fields.flag("use_mrope"):
        found.append("multimodal rotary embedding (use_mrope)")
    rope = _rope_parameters(fields)
    kind = _rope_kind(rope)
    if kind not in ("default", "linear", "llama3", "yarn"):
        found.append(f"rope type {shown(kind)} (default, linear, llama3 and yarn are supported)")
    partial = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0, least=0), least=0)
    if partial != 1.0:
        found.append(f"partial rotary embedding (partial_rotary_factor {partial:g})")
    return found


def _unsupported_in_gemma(fields: Fields) -> list[str]:
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    found = [f"a soft cap ({name})" for name in caps if fields.number(name, 0.0, least=0)]
    if fields.flag("use_bidirectional_attention"):
        found.append("attention to later tokens (use_bidirectional_attention)")
    if not _global_every(fields):
        found.append("local and global layers that do not alternate evenly (layer_types)")
    kind = _rope_kind(_rope_parameters(fields, "sliding_attention"))
    if kind != "default":
        found.append(f"rope type {shown(kind)} in local layers")
    return found


def _slides(fields: Fields) -> bool:
    """Whether a layer attends to a window: layers from max_window_layers on, unless layer_types says which."""
    kinds = fields.items("layer_types", str)
    first = fields.count("max_window_layers", 0, least=0)
    # Whether there is a window at all: its size is nothing that full layers use.
    windowed = fields.flag("use_sliding_window") and "sliding_window" in fields
    if kinds:
        return "sliding_attention" in kinds
    return windowed and fields.count("num_hidden_layers") > first


def _rope_parameters(fields: Fields, layers: str = "full_attention") -> Fields:
    """Return the one object that describes the rotary embedding of a kind of layers, in either transformers' spelling.

    The older spelling has none for local layers.
    """
    parameters = fields.within("rope_scaling")
    if not parameters.values:
        parameters = fields.within("rope_parameters")
    kinds = [kind for kind in ("full_attention", "sliding_attention") if kind in parameters]
    if kinds:
        return parameters.within(layers)
    return parameters if layers == "full_attention" else Fields({}, parameters.where)


def _rope_kind(parameters: Fields) -> str:
    return parameters.text("rope_type", parameters.text("type", "default"))


def _rope(fields: Fields) -> dict[str, Any]:
    """Return the values of a `Rope` config."""
    parameters = _rope_parameters(fields)
    kind = _rope_kind(parameters)
    theta = parameters.number("rope_theta", fields.number("rope_theta", _DEFAULT_THETA, above=1), above=1)
    if kind == "default":
        return {"kind": "plain", "theta": theta}
    if kind == "linear":
        return {"kind": "linear", "theta": theta, "factor": parameters.number("factor", least=1)}
    declared = fields.count("max_position_embeddings")
    # A value beside the rope parameters wins over one inside them; that is what transformers does.
    holder = fields if "original_max_position_embeddings" in fields else parameters
    original = holder.count("original_max_position_embeddings", declared)
    if kind == "llama3":
        missing = [key for key in ("factor", "low_freq_factor", "high_freq_factor") if key not in parameters]
        if missing:
            raise ConfigError(f"{parameters.where}: rope parameters of type llama3 lack {', '.join(missing)}")
        low = parameters.number("low_freq_factor", above=0)
        return {
            "kind": "llama3",
            "theta": theta,
            "factor": parameters.number("factor", above=0),
            "low_freq_factor": low,
            "high_freq_factor": parameters.number("high_freq_factor", above=low),
            "original_positions": original,
        }
    factor = parameters.number("factor", None if original == declared else declared / original, least=1)
    attention = yarn_attention_factor(
        factor, parameters.number("mscale", 0.0, least=0), parameters.number("mscale_all_dim", 0.0, least=0)
    )
    return {
        "kind": "yarn",
        "theta": theta,
        "factor": factor,
        "original_positions": original,
        "beta_fast": parameters.number("beta_fast", 32.0, least=0) or 32.0,
        "beta_slow": parameters.number("beta_slow", 1.0, least=0) or 1.0,
        "attention_factor": parameters.number("attention_factor", attention, above=0),
        "truncate": parameters.flag("truncate", True),
    }


def yarn_attention_factor(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """Return YaRN's attention factor where the config gives none: `0.1 ln(factor) + 1`, or the ratio of two such terms."""

    def term(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return term(mscale) / term(mscale_all_dim) if mscale and mscale_all_dim else term(1.0)


def longest_context(rope: Mapping[str, Any], declared: int) -> int:
    """Return the positions a model can use: the declared ones, or what YaRN stretches its original ones to.

    Raises `ConfigError` for more of them than can be counted on a device.
    """
    if rope["kind"] != "yarn":
        return declared
    stretched = rope["original_positions"] * rope["factor"]
    if not stretched <= MOST:
        raise ConfigError(f"YaRN stretches {rope['original_positions']} positions by {rope['factor']:g}: more than 2**31")
    return max(declared, int(stretched))


def read_config(directory: Path) -> DecoderConfig:
    """Read config.json of a model directory.  Raises as `config_from_hf` does, and `CheckpointError` without the file."""
    file = directory / "config.json"
    return config_from_hf(read_json(file), str(file))


def read_end_tokens(directory: Path) -> frozenset[int]:
    """Return every end token of generation_config.json, or those of config.json where it names none."""
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        refuse_special(file, CheckpointError)
        if not file.is_file():
            continue
        ids = read_json(file).get("eos_token_id")
        if not isinstance(ids, list):
            ids = [] if ids is None else [ids]
        if not all(type(token) is int and 0 <= token <= MOST for token in ids):
            raise CheckpointError(f"eos_token_id in {file} must be a token id or a list of them, not {shown(ids)}")
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
        self._stored_name: dict[str, str] = {}  # of a tensor that was renamed
        self.problems: list[str] = []
        for path in _weight_files(directory):
            file = SafetensorsFile(path)
            self.problems += file.problems
            for name in file.shapes:
                if name in self._file_of:
                    self.problems.append(f"{name} is in {self._file_of[name].path.name} and in {path.name}")
                self._file_of[name] = file

    @property
    def unusable(self) -> set[str]:
        """The tensors whose dtype cannot be read."""
        return {name for name, file in self._file_of.items() if name not in file.dtypes}

    def rename(self, stored: str, name: str) -> None:
        """Let a tensor be called `name`, if it is there."""
        if stored in self._file_of:
            self._file_of[name] = self._file_of.pop(stored)
            self._stored_name[name] = stored

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of every tensor."""
        return {name: file.shapes[self._stored(name)] for name, file in self._file_of.items()}

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype that a tensor is stored in."""
        return self._file_of[name].dtypes[self._stored(name)]

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read one tensor in the dtype it is stored in, or only a piece of it."""
        return self._file_of[name].read(self._stored(name), index)

    def pick(self, name: str, places: tuple[HostArray, ...]) -> HostArray:
        """Read single elements of a tensor, an index array for each axis."""
        return self._file_of[name].pick(self._stored(name), places)

    def _stored(self, name: str) -> str:
        return self._stored_name.get(name, name)


def _weight_files(directory: Path) -> list[Path]:
    for name in (_WEIGHTS, _INDEX):
        refuse_special(directory / name, CheckpointError)
    if (directory / _WEIGHTS).is_file():
        return [directory / _WEIGHTS]
    if (directory / _INDEX).is_file():
        return _files_of_index(directory)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise CheckpointError(
            f"{directory} has its weights only as a torch pickle, and reading one can run code; load it with transformers "
            f"where you trust it, and save_pretrained writes {_WEIGHTS}"
        )
    instead = weights_instead(directory)
    raise CheckpointError(f"{directory} has neither {_WEIGHTS} nor {_INDEX}{instead}")


def _files_of_index(directory: Path) -> list[Path]:
    weight_map = read_json(directory / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{directory / _INDEX} has no weight_map")
    strange = [name for name, file in weight_map.items() if not isinstance(file, str)]
    if strange:
        raise CheckpointError(f"{directory / _INDEX} names no file for {listing(strange, ', ')}")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{directory / _INDEX} points outside its directory: {listing(outside, ', ')}")
    for name in names:
        refuse_special(directory / name, CheckpointError)
    absent = [name for name in names if not (directory / name).is_file()]
    if absent:
        raise CheckpointError(f"{directory} lacks {listing(absent, ', ')}, which {_INDEX} lists")
    return [directory / name for name in names]


def _ignored(config: DecoderConfig) -> frozenset[str]:
    """Name what may be there and is not used: frequency buffers that old versions of transformers saved."""
    per_layer = (f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(config.layers))
    return frozenset({"model.rotary_emb.inv_freq", *per_layer, *([_HEAD] if config.tied_head else [])})


def tied_as_stored(directory: str | Path, config: DecoderConfig) -> DecoderConfig:
    """Return the config with a head of its own, where it says that the head is tied and the files have a different one.

    Transformers, too, does not tie two tensors that differ.
    """
    if not config.tied_head:
        return config
    source = SafetensorsDirectory(Path(directory))
    shapes = source.shapes()
    if _HEAD not in shapes or shapes[_HEAD] != shapes.get(_EMBEDDING):
        return config
    if source.unusable & {_HEAD, _EMBEDDING} or _same_table(source, shapes[_HEAD][0]):
        return config
    return config.model_copy(update={"tied_head": False})


def _same_table(source: SafetensorsDirectory, rows: int) -> bool:
    for first in range(0, rows, _ROWS):
        piece = (slice(first, min(first + _ROWS, rows)), slice(None))
        if not np.array_equal(source.read(_HEAD, piece), source.read(_EMBEDDING, piece)):
            return False
    return True


def list_parameters(directory: str | Path, config: DecoderConfig, dtype: str | None) -> list[StoredParameter]:
    """Check all tensors of a model directory, then list the parameters, which are still to be read.

    Raises:
      CheckpointError: listing every missing, misshaped, extra or unusable tensor, before anything is read.
      ConfigError: unknown dtype.
    """
    target = parameter_dtype(dtype)
    source = SafetensorsDirectory(Path(directory))
    rules = hf_rules(config)
    if config.tied_head and _EMBEDDING not in source.shapes():
        source.rename(_HEAD, _EMBEDDING)  # of two names of one tensor, some writers keep the other one
    problems = find_problems(rules, config, source.shapes(), _ignored(config)) + source.problems
    refuse_problems(directory, problems)
    return stored_parameters(rules, config, source, target)
