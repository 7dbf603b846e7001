"""The rule tables: both directions, against the decoder's own list of parameters, and the layouts spelled out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from psynth_jax.config import DecoderConfig, PlainRope
from psynth_jax.convert.rules import (
    GGUF_RULES,
    HF_RULES,
    Form,
    axis_sizes,
    find_problems,
    gguf_rules,
    hf_rules,
    parameter_dtype,
)
from psynth_jax.errors import ConfigError
from psynth_jax.nn.decoder import parameter_shapes


def tiny(family: str, **changed) -> DecoderConfig:
    fields = {
        "family": family,
        "vocab_size": 29,
        "width": 11,
        "layers": 3,
        "heads": 6,
        "kv_heads": 2,
        "head_width": 10,
        "mlp_width": 13,
        "norm_eps": 1e-5,
        "rope": PlainRope(theta=10_000.0),
        "qk_norm": family in ("qwen3", "qwen3_moe", "gemma3_text"),
        "norms_after": family == "gemma3_text",
        **({"experts": 5, "experts_per_token": 2} if family == "qwen3_moe" else {}),
        "qkv_bias": family == "qwen2",
        "max_positions": 64,
    }
    return DecoderConfig(**{**fields, **changed})


CONFIGS = {
    "llama": tiny("llama"),
    "llama tied": tiny("llama", tied_head=True),
    "llama with biases": tiny("llama", qkv_bias=True, o_bias=True),
    "qwen2": tiny("qwen2"),
    "qwen3": tiny("qwen3"),
    "qwen3 tied, with biases": tiny("qwen3", tied_head=True, qkv_bias=True, o_bias=True),
    "qwen3_moe": tiny("qwen3_moe"),
    "gemma3_text": tiny("gemma3_text"),
}


TABLES = [
    pytest.param(config, rules_of, id=f"{name}-{rules_of.__name__}")
    for name, config in CONFIGS.items()
    for rules_of, tables in ((hf_rules, HF_RULES), (gguf_rules, GGUF_RULES))
    if config.family in tables
]


@pytest.mark.parametrize(("config", "rules_of"), TABLES)
class TestTables:
    def test_make_exactly_the_decoders_parameters(self, config, rules_of) -> None:
        assert {rule.ours: rule.our_shape(config) for rule in rules_of(config)} == parameter_shapes(config)

    def test_there_and_back_is_bitwise_the_same(self, config, rules_of) -> None:
        rng = np.random.default_rng(3)
        sizes = axis_sizes(config)
        for rule in rules_of(config):
            theirs = rng.standard_normal(rule.form.their_shape(sizes)).astype(np.float32)
            ours = rule.form.to_ours(theirs, sizes)
            assert ours.shape == rule.form.our_shape(sizes)
            np.testing.assert_array_equal(rule.form.to_theirs(ours, sizes), theirs, err_msg=rule.ours)

    def test_tensor_names_are_distinct(self, config, rules_of) -> None:
        names = [name for rule in rules_of(config) for name in rule.their_names(config).values()]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("tables", [HF_RULES, GGUF_RULES])
@pytest.mark.parametrize(
    ("family", "field", "there"),
    [
        ("llama", {"qkv_bias": True}, {"layers.q_bias", "layers.k_bias", "layers.v_bias"}),
        ("llama", {"o_bias": True}, {"layers.o_bias"}),
        ("qwen3", {"qk_norm": True}, {"layers.q_norm", "layers.k_norm"}),
        ("qwen2", {"tied_head": False}, {"head"}),
    ],
)
def test_conditional_rules_follow_their_field(tables, family, field, there) -> None:
    off = {key: not value for key, value in field.items()}
    with_it, without = ({r.ours for r in tables[family] if r.applies(tiny(family, **f))} for f in (field, off))
    assert with_it - without == there
    assert without <= with_it


def test_layouts_by_hand() -> None:
    config = tiny("llama")
    sizes = axis_sizes(config)
    forms = {rule.ours: rule.form for rule in hf_rules(config)}
    q = np.arange(60 * 11).reshape(60, 11)
    o = np.arange(11 * 60).reshape(11, 60)
    up = np.arange(13 * 11).reshape(13, 11)
    d, n, h, f = 7, 4, 3, 12
    assert forms["layers.q"].to_ours(q, sizes)[d, n, h] == q[n * 10 + h, d]
    assert forms["layers.o"].to_ours(o, sizes)[n, h, d] == o[d, n * 10 + h]
    assert forms["layers.up"].to_ours(up, sizes)[d, f] == up[f, d]


@pytest.mark.parametrize(("name", "heads"), [("q", 6), ("k", 2)])
def test_llama_gguf_rows_are_interleaved_halves(name: str, heads: int) -> None:
    """Row 2i of a stored head is channel i of the first half, row 2i + 1 is channel i of the second."""
    config = tiny("llama")
    sizes = axis_sizes(config)
    plain = {rule.ours: rule.form for rule in hf_rules(config)}[f"layers.{name}"]
    stored = {rule.ours: rule.form for rule in gguf_rules(config)}[f"layers.{name}"]
    theirs = np.random.default_rng(0).standard_normal((heads * 10, 11))
    interleaved = np.empty_like(theirs)
    for head in range(heads):
        for i in range(5):
            interleaved[head * 10 + 2 * i] = theirs[head * 10 + i]
            interleaved[head * 10 + 2 * i + 1] = theirs[head * 10 + 5 + i]
    np.testing.assert_array_equal(stored.to_ours(interleaved, sizes), plain.to_ours(theirs, sizes))
    assert not np.array_equal(stored.to_ours(theirs, sizes), plain.to_ours(theirs, sizes))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_gguf_rows_are_as_in_hugging_face(family: str) -> None:
    config = tiny(family)
    assert [(r.ours, r.form) for r in gguf_rules(config)] == [(r.ours, r.form) for r in hf_rules(config)]


def test_a_form_merges_axes_on_either_side() -> None:
    form = Form("(N H) D", "D (H N)")
    tensor = np.arange(24).reshape(6, 4)
    sizes = {"N": 2, "H": 3, "D": 4}
    assert form.to_ours(tensor, sizes)[1, 2 * 2 + 1] == tensor[1 * 3 + 2, 1]


def test_problems_name_every_tensor_and_both_shapes() -> None:
    config = tiny("llama")
    rules = hf_rules(config)
    shapes = {n: r.form.their_shape(axis_sizes(config)) for r in rules for n in r.their_names(config).values()}
    assert find_problems(rules, config, shapes) == []
    del shapes["model.norm.weight"], shapes["model.layers.2.self_attn.q_proj.weight"]
    shapes["model.layers.1.mlp.up_proj.weight"] = (11, 13)
    shapes |= {"strange": (2,), "known": (3,)}
    assert find_problems(rules, config, shapes, frozenset({"known"})) == [
        "missing model.layers.2.self_attn.q_proj.weight [60, 11]",
        "missing model.norm.weight [11]",
        "model.layers.1.mlp.up_proj.weight has shape [11, 13], expected [13, 11]",
        "extra strange [2]",
    ]


def test_unknown_dtype_lists_the_known_ones() -> None:
    assert parameter_dtype("float16") == np.float16
    with pytest.raises(ConfigError, match="'int8' is not supported; use one of float32, bfloat16, float16"):
        parameter_dtype("int8")
