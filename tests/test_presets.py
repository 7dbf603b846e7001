"""Presets against the parameter counts that their publishers state."""

from __future__ import annotations

import math

import pytest

from psynth_jax.config import Llama3Rope
from psynth_jax.convert.rules import hf_rules
from psynth_jax.errors import UserError
from psynth_jax.nn.decoder import parameter_shapes
from psynth_jax.presets import PRESETS, preset

PUBLISHED = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}


def test_every_preset_has_a_published_count() -> None:
    assert set(PUBLISHED) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count(name: str) -> None:
    assert sum(math.prod(shape) for shape in parameter_shapes(preset(name).config).values()) == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_checkpoint_rules_make_exactly_the_decoders_parameters(name: str) -> None:
    config = preset(name).config
    assert {rule.ours: rule.our_shape(config) for rule in hf_rules(config)} == parameter_shapes(config)


def test_llama_presets_scale_their_frequencies() -> None:
    factors = {name: p.config.rope.factor for name, p in PRESETS.items() if isinstance(p.config.rope, Llama3Rope)}
    assert factors == {"llama-3.2-1b": 32.0, "llama-3.2-3b": 32.0, "llama-3.1-8b": 8.0}


def test_hub_ids_are_distinct() -> None:
    assert len({p.hub_id for p in PRESETS.values()}) == len(PRESETS)


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(UserError, match=r"no model called 'gpt-9'.*qwen3-14b.*smollm2-135m"):
        preset("gpt-9")
