"""Every value of a config.json that is read is checked first: of the wrong ones none is taken, and none is a traceback."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psynth_jax.config import DecoderConfig
from psynth_jax.convert.fields import Fields
from psynth_jax.convert.hf import config_from_hf
from psynth_jax.convert.load import open_model
from psynth_jax.errors import ConfigError, UserError
from tests.convert.test_hf import GEMMA3, LLAMA, QWEN2, QWEN3, QWEN3_MOE, random_tensors, write_model

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 32
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1}
YARN |= {"attention_factor": 1.2, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False, "rope_theta": 5000.0}
LOCAL = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}
OPTIONAL: dict[str, Any] = {
    "attention_bias": False,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "use_sliding_window": False,
    "max_window_layers": 3,
    "layer_types": ["full_attention"] * 3,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "use_mrope": False,
    "no_rope_layers": [1, 1, 1],
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "eos_token_id": [3],
}
BASES = {
    "llama": {**LLAMA, **OPTIONAL, "rope_scaling": LLAMA3},
    "qwen2": {**QWEN2, **OPTIONAL, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}},
    "qwen3": {**QWEN3, **OPTIONAL, "rope_scaling": YARN, "original_max_position_embeddings": 16},
    "qwen3_moe": {**QWEN3_MOE, **OPTIONAL},
    "gemma3": {
        **GEMMA3,
        "rope_parameters": LOCAL,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_local_base_freq": 100.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
}
NOT_FINITE = [math.inf, -math.inf, math.nan]
WRONG: list[Any] = [
    *NOT_FINITE,
    *(None, True, False, 0, 1, -1, 0.0, -0.0, 0.5, -2.5, 1e300, -1e300, 5e-324, 1e38),
    *(2**31, 2**63, 10**30, 10**400, -(10**400)),
    *("", "x", "4", "nan", "\ud800", "full_attention"),
    *([], [1], [[1]], [None], ["x"], [["full_attention"]], [{}], [math.nan], [True], [10**400]),
    *({}, {"a": 1}, {"rope_type": []}, {"full_attention": 3}, {"full_attention": {"rope_type": "yarn", "factor": math.inf}}),
]


def keys_of(raw: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the path of every value, those inside of objects too."""
    found: list[tuple[str, ...]] = []
    for key, value in raw.items():
        found.append((key,))
        if isinstance(value, dict):
            found += [(key, *inner) for inner in keys_of(value)]
    return found


def changed(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    if len(path) == 1:
        return {**raw, path[0]: value}
    return {**raw, path[0]: changed(raw[path[0]], path[1:], value)}


def sensible(config: DecoderConfig) -> bool:
    """Whether all numbers of a config are finite, and positive where they must be."""
    floats = [config.norm_eps, config.rope.theta]
    if config.rope.kind == "yarn":
        floats += [config.rope.factor, config.rope.attention_factor, config.rope.beta_fast, config.rope.beta_slow]
    counts = [config.vocab_size, config.width, config.layers, config.heads, config.max_positions]
    whole = all(type(x) is int and 0 < x < 2**31 for x in counts)
    return whole and all(0 < x < math.inf for x in floats)


def taken(raw: dict[str, Any]) -> DecoderConfig | None:
    """Return what a config is read as; None: it was refused, in one line."""
    try:
        config = config_from_hf(raw)
    except UserError as error:
        config, said = None, str(error)
    if config is None:
        assert "\n" not in said and 10 < len(said) < 600
    else:
        assert sensible(config)
    return config


@pytest.mark.parametrize("name", BASES)
def test_the_right_values_are_taken(name: str) -> None:
    assert taken(BASES[name]) is not None


@pytest.mark.parametrize("name", BASES)
def test_every_key_with_every_wrong_value(name: str) -> None:
    raw, refused = BASES[name], 0
    for path in keys_of(raw):
        for value in WRONG:
            refused += taken(changed(raw, path, value)) is None
    assert refused > len(keys_of(raw)), "a key takes hardly any of the wrong values"


@pytest.mark.parametrize("name", BASES)
def test_two_wrong_values_at_once(name: str) -> None:
    """`taken` fails the test for what is neither taken nor refused by a line that a user can act on."""
    raw, rng = BASES[name], np.random.default_rng(7)
    paths, refused = keys_of(raw), 0
    for _ in range(1500):
        again = raw
        for place in rng.choice(len(paths), 2, replace=False):
            value = WRONG[rng.integers(len(WRONG))]
            try:
                again = changed(again, paths[place], value)
            except (KeyError, TypeError, IndexError):  # the first change has taken the place of the second away
                continue
        refused += taken(again) is None
    assert refused > 750, "most pairs of wrong values are taken"


NUMBERS = [
    *[("llama", key) for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")],
    *[("llama", key) for key in ("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings")],
    *[("llama", key) for key in ("rope_theta", "partial_rotary_factor")],
    *[("llama", f"rope_scaling.{key}") for key in LLAMA3 if key != "rope_type"],
    *[("qwen3", f"rope_scaling.{key}") for key in YARN if key not in ("rope_type", "truncate")][:1],
    *[
        ("qwen3", f"rope_scaling.{key}")
        for key in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
    ],
    *[("qwen3", key) for key in ("original_max_position_embeddings",)],
    *[("qwen2", "rope_parameters.factor"), ("qwen2", "rope_parameters.rope_theta")],
    *[("qwen3_moe", key) for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")],
    *[("gemma3", key) for key in ("query_pre_attn_scalar", "sliding_window", "rope_local_base_freq")],
    *[("gemma3", key) for key in ("attn_logit_softcapping", "final_logit_softcapping")],
    ("gemma3", "rope_parameters.full_attention.factor"),
]


@pytest.mark.parametrize(("name", "key"), NUMBERS)
@pytest.mark.parametrize("value", [*NOT_FINITE, True, "4", "x", [4], [[1]], {}, -3, 10**400])
def test_what_is_no_number_is_named(name: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_hf(changed(BASES[name], tuple(key.split(".")), value))
    said = str(caught.value)
    assert key.split(".")[-1] in said and said.startswith("config.json: ") and len(said) < 300


FLAGS = ["attention_bias", "tie_word_embeddings", "mlp_bias", "rope_interleaved", "use_mrope", "use_sliding_window"]


@pytest.mark.parametrize("key", [*FLAGS, "rope_scaling.truncate"])
@pytest.mark.parametrize("value", [0, 1, "true", "", [], {}, math.nan])
def test_what_is_no_flag_is_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{key.rsplit('.', maxsplit=1)[-1]} must be true or false"):
        config_from_hf(changed(BASES["qwen3"], tuple(key.split(".")), value))


@pytest.mark.parametrize("key", ["layer_types", "architectures", "mlp_only_layers", "no_rope_layers"])
@pytest.mark.parametrize("value", ["full_attention", 7, {"a": 1}, True])
def test_what_is_no_list_is_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be a list"):
        config_from_hf({**BASES["llama"], key: value})


@pytest.mark.parametrize("key", ["layer_types", "architectures"])
def test_nested_lists_are_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be a list of texts"):
        config_from_hf({**BASES["gemma3"], key: [["full_attention"]]})


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters", "rope_parameters.full_attention"])
@pytest.mark.parametrize("value", [[1], "yarn", 7, False, []])
def test_what_is_no_object_is_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="must be an object"):
        config_from_hf(changed({**GEMMA3, "rope_parameters": LOCAL}, tuple(key.split(".")), value))


def test_yarn_beyond_every_position() -> None:
    with pytest.raises(ConfigError, match=r"YaRN stretches 16 positions by 1e\+30"):
        config_from_hf(changed(BASES["qwen3"], ("rope_scaling", "factor"), 1e30))


def test_nan_in_a_file_is_named(tmp_path: Path) -> None:
    write_model(tmp_path, QWEN3, random_tensors(QWEN3))
    raw = {**QWEN3, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": math.inf, "mscale_all_dim": math.inf}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"config\.json: rope_scaling\.mscale(_all_dim)? is not a finite number"):
        open_model(tmp_path)


@pytest.mark.parametrize("value", [-1, True, 2**31, 10**30, "3", [3, "4"], [[3]], 1.5, {"a": 1}])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_end_tokens(tmp_path: Path, name: str, value: Any) -> None:
    write_model(tmp_path, LLAMA, random_tensors(LLAMA))
    raw = LLAMA if name == "config.json" else {}
    (tmp_path / name).write_text(json.dumps({**raw, "eos_token_id": value}))
    with pytest.raises(UserError, match=rf"eos_token_id in .*{name} must be a token id or a list"):
        open_model(tmp_path)


class TestFields:
    def test_a_default_is_what_is_left_out(self) -> None:
        fields = Fields({"a": None}, "f")
        assert (fields.count("a", 3), fields.number("a", 0.5), fields.flag("a", True), fields.text("a", "t")) == (
            3,
            0.5,
            True,
            "t",
        )
        assert fields.items("a") == [] and fields.within("a").values == {} and "a" not in fields

    def test_without_a_default_it_must_be_there(self) -> None:
        for read in (lambda f: f.count("a"), lambda f: f.number("a")):
            with pytest.raises(ConfigError, match=r"f: a must be a .*, not None"):
                read(Fields({}, "f"))

    def test_whole_floats_are_counts(self) -> None:
        count = Fields({"a": 64.0}, "f").count("a")
        assert count == 64 and type(count) is int

    def test_long_values_are_cut(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Fields({"a": ["x"] * 10_000}, "f").count("a")
        assert len(str(caught.value)) < 200
