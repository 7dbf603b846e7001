"""A model -> a Hugging Face directory: config.json, safetensors in shards, tokenizer and generation config.

Shard by shard, each small: a model of any size can be written on a machine with little memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from psynth_jax.config import DecoderConfig, LinearRope, Llama3Rope, YarnRope
from psynth_jax.convert.hf import ARCHITECTURES, config_from_hf
from psynth_jax.convert.rules import hf_rules
from psynth_jax.convert.safetensors_file import read_json, write_json
from psynth_jax.convert.stream import Change, ModelStream, Tensor, in_groups, tensors_of
from psynth_jax.errors import UnsupportedModelError

_CARRIED = (
    *("generation_config.json", "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.jinja", "LICENSE*", "NOTICE*"),
)


def write_hf(directory: Path, stream: ModelStream, config: DecoderConfig, change: Change | None = None) -> None:
    """Write a model into an empty directory.

    Args:
      stream: the model; what it is loaded as is what is written.
      config: its config, perhaps with a smaller vocabulary, to which embedding and head are cut.
      change: of parameters on their way, such as adding a LoRA.
    """
    tensors = tensors_of(stream, hf_rules(config), config, change)
    write_shards(directory, tensors)
    write_companions(directory, stream, config, {tensor.dtype for tensor in tensors})


def write_shards(directory: Path, tensors: Sequence[Tensor]) -> None:
    """Write model.safetensors, or several files and their index."""
    shards = in_groups(tensors)
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        arrays = {tensor.name: np.ascontiguousarray(tensor.read()) for tensor in shard}
        safetensors.numpy.save_file(arrays, directory / name, metadata={"format": "pt"})
    if count > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": sum(tensor.size for tensor in tensors)}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)


def write_companions(directory: Path, stream: ModelStream, config: DecoderConfig, dtypes: set[np.dtype]) -> None:
    """Write what stands next to the weights: as the source has it, where it is a Hugging Face directory."""
    source = stream.files
    if source is None:
        raw = config_to_hf(config, stream.stop_ids)
        if stream.tokenizer is not None:
            stream.tokenizer.backend.save_pretrained(directory)
        if stream.stop_ids:
            write_json(directory / "generation_config.json", {"eos_token_id": sorted(stream.stop_ids)})
    else:
        raw = read_json(source / "config.json")
        for pattern in _CARRIED:
            for path in source.glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, directory / path.name)
    changed = dict(raw)
    if stream.config.vocab_size != config.vocab_size:
        changed["vocab_size"] = config.vocab_size
    if config_from_hf(raw).tied_head != config.tied_head:
        changed["tie_word_embeddings"] = config.tied_head
    main = max(dtypes, key=lambda dtype: dtype.itemsize).name
    key = "dtype" if "dtype" in raw else "torch_dtype"
    if source is None or (len(dtypes) == 1 and raw.get(key) not in (main, None)):
        changed[key] = main
    if source is not None and changed == raw:
        shutil.copyfile(source / "config.json", directory / "config.json")
    else:
        write_json(directory / "config.json", changed)


def config_to_hf(config: DecoderConfig, stop_ids: frozenset[int] = frozenset()) -> dict[str, Any]:
    """Spell a config as config.json does, in keys that transformers 4 and 5 read.

    Raises `UnsupportedModelError` for biases that the family's config cannot express.
    """
    biases = (config.qkv_bias, config.o_bias)
    if biases != (True, False) if config.family == "qwen2" else biases[0] != biases[1]:
        raise UnsupportedModelError(f"a {config.family} config cannot say: biases of q, k, v {biases[0]}, of o {biases[1]}")
    raw: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        ("moe_intermediate_size" if config.experts else "intermediate_size"): config.mlp_width,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied_head,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope.theta,
    }
    if config.family != "qwen2":
        raw["attention_bias"] = config.qkv_bias
    if config.experts:
        raw |= {
            "num_experts": config.experts,
            "num_experts_per_tok": config.experts_per_token,
            "norm_topk_prob": config.norm_expert_weights,
        }
    if config.family == "gemma3_text":
        del raw["hidden_act"]
        raw |= _gemma_to_hf(config)
    if stop_ids:
        raw["eos_token_id"] = sorted(stop_ids)
    match config.rope:
        case LinearRope() as rope:
            raw["rope_scaling"] = {"rope_type": "linear", "factor": rope.factor}
        case Llama3Rope() as rope:
            raw["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_positions,
            }
        case YarnRope() as rope:
            raw["rope_scaling"] = {
                "rope_type": "yarn",
                "factor": rope.factor,
                "original_max_position_embeddings": rope.original_positions,
                "beta_fast": rope.beta_fast,
                "beta_slow": rope.beta_slow,
                "attention_factor": rope.attention_factor,
                "truncate": rope.truncate,
            }
    return raw


def _gemma_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """Spell what only Gemma 3 has."""
    local, layers = config.local, range(1, config.layers + 1)
    sees_all = [local is None or layer % local.global_every == 0 for layer in layers]
    raw: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round((config.query_scale or config.head_width**-0.5) ** -2),
        "layer_types": ["full_attention" if every else "sliding_attention" for every in sees_all],
    }
    if local is not None:
        raw |= {"sliding_window": local.window, "rope_local_base_freq": local.rope.theta}
    return raw
