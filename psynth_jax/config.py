"""Typed, frozen, strict configs.  An unknown key or a wrong type is a `ConfigError` that names the key.

Knows no array and no file format: `convert/` fills these from Hugging Face and GGUF metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

from psynth_jax.errors import ConfigError, listing

MOST = 2**31 - 1  # positions, token ids and sizes are int32 on devices
Count = Annotated[int, pydantic.Field(ge=1)]
Size = Annotated[int, pydantic.Field(ge=1, le=MOST)]
Positive = Annotated[float, pydantic.Field(gt=0.0, allow_inf_nan=False)]


class Config(pydantic.BaseModel):
    """Base of all configs: frozen, hashable (so that it can be static under `jax.jit`), strict."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validate a mapping.  Raises `ConfigError` with every wrong key in one line."""
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as error:
            problems = []
            for item in error.errors():
                key = ".".join(str(part) for part in item["loc"]) or cls.__name__
                problems.append(f"{key}: {item['msg']}")
            raise ConfigError(f"{cls.__name__} is not valid: {listing(problems)}") from None


class PlainRope(Config):
    """Rotary embedding without scaling: frequency i is `theta ** (-2 i / H)`."""

    kind: Literal["plain"] = "plain"
    theta: Positive


class LinearRope(Config):
    """Every frequency divided by `factor`."""

    kind: Literal["linear"] = "linear"
    theta: Positive
    factor: Positive


class Llama3Rope(Config):
    """Llama 3.1's scaling: long wavelengths are slowed by `factor`, short ones kept, a linear ramp between."""

    kind: Literal["llama3"] = "llama3"
    theta: Positive
    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_positions: Size


class YarnRope(Config):
    """YaRN (arXiv 2309.00071).  `attention_factor` multiplies cos and sin of tokens, and nothing a second time."""

    kind: Literal["yarn"] = "yarn"
    theta: Positive
    factor: Positive
    original_positions: Size
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    attention_factor: Positive
    truncate: bool = True


Rope = Annotated[PlainRope | LinearRope | Llama3Rope | YarnRope, pydantic.Field(discriminator="kind")]


class LocalLayers(Config):
    """Layers that see a window: all but every `global_every`-th.

    A token sees `window` positions, its own among them.  rope: of these layers; the others have the model's.
    """

    window: Size
    global_every: Annotated[int, pydantic.Field(ge=2)]
    rope: Rope


class DecoderConfig(Config):
    """Everything that changes what a decoder computes.  Letters as in `axes.py`.

    family names the rule table that maps checkpoint tensors to parameters (`convert/rules.py`).
    """

    family: Literal["llama", "qwen2", "qwen3", "qwen3_moe", "gemma3_text"]
    vocab_size: Size  # V
    width: Size  # D
    layers: Annotated[int, pydantic.Field(ge=1, le=10_000)]  # L
    heads: Size  # N
    kv_heads: Size  # K
    head_width: Annotated[int, pydantic.Field(ge=2, multiple_of=2)]  # H
    mlp_width: Size  # F; of one expert, where there are experts
    norm_eps: Positive
    rope: Rope
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    tied_head: bool = False
    max_positions: Size
    experts: Annotated[int, pydantic.Field(ge=0, le=10_000)] = 0  # E; 0: one MLP
    experts_per_token: Annotated[int, pydantic.Field(ge=0)] = 0
    norm_expert_weights: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    query_scale: Positive | None = None  # of logits; None: H ** -0.5
    scaled_embedding: bool = False  # times D ** 0.5
    norms_from_one: bool = False  # weights of norms are stored as their difference from 1
    norms_after: bool = False  # attention and MLP have a norm behind them too
    local: LocalLayers | None = None

    letters: ClassVar[dict[str, str]] = {
        "L": "layers",
        "N": "heads",
        "K": "kv_heads",
        "H": "head_width",
        "D": "width",
        "F": "mlp_width",
        "V": "vocab_size",
        "E": "experts",
    }

    @pydantic.model_validator(mode="after")
    def _agrees(self) -> Self:
        if bool(self.experts) != bool(self.experts_per_token) or self.experts_per_token > self.experts:
            raise ValueError(f"{self.experts_per_token} of {self.experts} experts cannot be chosen")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self

    @property
    def sizes(self) -> dict[str, int]:
        """Letter -> size, for `axes.letters_to_shape`; without E where there are no experts."""
        return {letter: getattr(self, field) for letter, field in self.letters.items() if getattr(self, field)}

    @property
    def spelled(self) -> str:
        """What this config computes, as one text that later versions of this class spell alike."""
        late = set() if self.experts else {"experts", "experts_per_token", "norm_expert_weights"}
        gemma = {"activation", "query_scale", "scaled_embedding", "norms_from_one", "norms_after", "local"}
        late |= set() if self.family == "gemma3_text" else gemma
        return self.model_dump_json(exclude=late)
