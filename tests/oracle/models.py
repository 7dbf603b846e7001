"""Tiny random Hugging Face models, one for every feature that changes what a decoder computes.

Sizes of one model differ from each other, so that a swapped axis cannot fit by luck.  Knows nothing of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB_SIZE = 97
MAX_POSITIONS = 256

# Wide enough apart that, with the models' thetas, some planes are kept, some are slowed, and one lies on the ramp.
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_SCALING = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
}


def _sizes(**changed: Any) -> dict[str, Any]:
    """Fields that all tiny configs share; no end token, so that nothing stops a generation early."""
    return {
        "vocab_size": VOCAB_SIZE,
        "num_hidden_layers": 3,
        "intermediate_size": 53,
        "max_position_embeddings": MAX_POSITIONS,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
        **changed,
    }


def _plain_rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _llama(seed: int, **changed: Any) -> PreTrainedModel:
    """N = 6, K = 2, H = 10, and D = 42 is not N * H."""
    sizes = _sizes(hidden_size=42, num_attention_heads=6, num_key_value_heads=2, head_dim=10, rms_norm_eps=1e-5)
    fields = {**sizes, "rope_parameters": _plain_rope(10_000.0), **changed}
    return _randomised(LlamaForCausalLM, LlamaConfig(**fields), seed)


def _llama_tied() -> PreTrainedModel:
    """SmolLM2's shape in small: 9 heads on 3, D = N * H with H not in the config, tied embeddings, theta 100,000."""
    sizes = _sizes(hidden_size=54, num_attention_heads=9, num_key_value_heads=3, rms_norm_eps=1e-5)
    fields = {**sizes, "rope_parameters": _plain_rope(100_000.0), "tie_word_embeddings": True}
    return _randomised(LlamaForCausalLM, LlamaConfig(**fields), 13)


def _qwen2() -> PreTrainedModel:
    """Bias on q, k and v but not on o; a head width follows from D."""
    sizes = _sizes(hidden_size=60, num_attention_heads=6, num_key_value_heads=3, rms_norm_eps=1e-6)
    config = Qwen2Config(**sizes, rope_parameters=_plain_rope(1_000_000.0), use_sliding_window=False)
    return _randomised(Qwen2ForCausalLM, config, 15)


def _qwen3(seed: int, rope: dict[str, Any], **changed: Any) -> PreTrainedModel:
    """A norm on every query and key head; N = 6, K = 2, H = 14, D = 26."""
    sizes = _sizes(hidden_size=26, num_attention_heads=6, num_key_value_heads=2, head_dim=14, rms_norm_eps=1e-6)
    fields = {**sizes, "rope_parameters": rope, "use_sliding_window": False, **changed}
    return _randomised(Qwen3ForCausalLM, Qwen3Config(**fields), seed)


def _qwen3_moe(seed: int, **changed: Any) -> PreTrainedModel:
    """Five experts of width 11, two of them for each token; N = 6, K = 2, H = 14, D = 26."""
    sizes = _sizes(hidden_size=26, num_attention_heads=6, num_key_value_heads=2, head_dim=14, rms_norm_eps=1e-6)
    experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 11, "experts_implementation": "eager"}
    fields = {**sizes, "rope_parameters": _plain_rope(1_000_000.0), "use_sliding_window": False, **experts, **changed}
    return _randomised(Qwen3MoeForCausalLM, Qwen3MoeConfig(**fields), seed)


def gemma3(seed: int, **changed: Any) -> PreTrainedModel:
    """Every second layer sees 96 positions, with frequencies of its own; N = 4, K = 1, H = 12, D = 28."""
    sizes = _sizes(hidden_size=28, num_attention_heads=4, num_key_value_heads=1, head_dim=12, rms_norm_eps=1e-6)
    rope = {"full_attention": _plain_rope(1_000_000.0), "sliding_attention": _plain_rope(10_000.0)}
    count = changed.get("num_hidden_layers", sizes["num_hidden_layers"])
    layers = [("sliding_attention", "full_attention")[i % 2] for i in range(count)]
    gemma = {"query_pre_attn_scalar": 20, "sliding_window": 96, "layer_types": layers, "rope_parameters": rope}
    fields = {**sizes, **gemma, "attn_implementation": "eager", **changed}
    return _randomised(Gemma3ForCausalLM, Gemma3TextConfig(**fields), seed)


def _randomised(kind: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Build the model and replace every parameter, norms and biases too, by seeded noise of a useful size.

    A fresh Hugging Face model has weights so small that attention is flat and the head sees little but the last token.
    """
    model = kind(config).to(torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_((0.0 if isinstance(model, Gemma3ForCausalLM) else 1.0) + 0.3 * noise)
            elif name.endswith("bias") or "embed_tokens" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * 1.4 / math.sqrt(parameter.shape[-1]))
    return model


FAST = "llama"  # of the models below, the one that the fast run of the tests looks at

TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: _llama(11),
    "llama_llama3_rope": lambda: _llama(12, rope_parameters=dict(LLAMA3_SCALING)),
    "llama_linear_rope": lambda: _llama(20, rope_parameters={**_plain_rope(10_000.0), "rope_type": "linear", "factor": 3.0}),
    "llama_tied": _llama_tied,
    "llama_attention_bias": lambda: _llama(14, attention_bias=True),
    "qwen2": _qwen2,
    "qwen3": lambda: _qwen3(16, _plain_rope(1_000_000.0)),
    "qwen3_moe": lambda: _qwen3_moe(18, norm_topk_prob=True),
    "gemma3": lambda: gemma3(19),
    "qwen3_yarn": lambda: _qwen3(17, dict(YARN_SCALING)),
}


# Those of the full tier: what the others add is one factor or one bias of these, and the real
# weights have tied embeddings.
IN_FULL = ("llama", "llama_llama3_rope", "qwen2", "qwen3_yarn", "qwen3_moe", "gemma3")


def save(model: PreTrainedModel, directory: str | Path) -> Path:
    """Write config and safetensors into `directory` and return it.  There is no tokenizer: token ids only."""
    path = Path(directory)
    model.save_pretrained(path)
    return path
