"""Separate layers compute what stacked ones do, under the same names, and nothing of them is copied in a step."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.config import LocalLayers, PlainRope
from psynth_jax.convert.convert import convert
from psynth_jax.engine.batch_runner import STEP
from psynth_jax.engine.machine import empty_heads
from psynth_jax.engine.programs import ProgramCall, Programs
from psynth_jax.engine.step import Conditioning
from psynth_jax.engine.step_input import Layout
from psynth_jax.errors import ConfigError
from psynth_jax.nn.decoder import Decoder, layer_shapes, parameter_shapes
from tests.slow import exhaustive_but
from tests.tiny import random_lora, random_mapper, talking_model, tiny_config, tiny_decoder, token_ids

GEMMA: dict[str, Any] = {
    "family": "gemma3_text",
    "activation": "gelu_tanh",
    "norms_from_one": True,
    "norms_after": True,
    "scaled_embedding": True,
    "qk_norm": True,
    "tied_head": True,
    "local": LocalLayers(window=4, global_every=2, rope=PlainRope(theta=100.0)),
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "biased": {"qkv_bias": True, "o_bias": True},
    "qk_norm": {"qk_norm": True},
    "experts": {"family": "qwen3_moe", "qk_norm": True, "experts": 4, "experts_per_token": 2},
    "gemma": GEMMA,
}


FORMS = [(1, False), (1, True), (9, False), (9, True)]  # tokens, and whether there is a LoRA


def both(**changed: Any) -> tuple[Decoder, Decoder]:
    stacked = tiny_decoder(tiny_config(**changed))
    return stacked, stacked.separated()


class TestSeparate:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("tokens", "adapted"), exhaustive_but(FORMS, fast=[(9, True)], full=[(1, False)]))
    def test_computes_what_stacked_computes(self, kind: str, tokens: int, adapted: bool) -> None:
        stacked, separate = both(**KINDS[kind])
        lora = random_lora(stacked.config, 3) if adapted else None
        ids = jnp.asarray([token_ids(1, tokens), token_ids(2, tokens)])
        position, scale = jnp.asarray([0, 5]), jnp.asarray([1.0, 0.0])
        expected = jax.jit(stacked)(ids, position, None, lora, scale)
        placed = None if lora is None else separate.placed(lora)
        for given in (lora, placed):
            found = jax.jit(separate)(ids, position, None, given, scale)
            for one, other in zip(expected, found, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=3e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_has_the_parameters_of_stacked(self, kind: str) -> None:
        stacked, separate = both(**KINDS[kind])
        assert stacked.layers_are_stacked and not separate.layers_are_stacked
        assert list(separate.parameters()) == list(stacked.parameters())
        for name, value in stacked.parameters().items():
            np.testing.assert_array_equal(separate.parameters()[name], value)
        counted = sum(value.size for value in stacked.parameters().values())
        assert separate.parameter_count == stacked.parameter_count == counted

    @pytest.mark.parametrize("kind", KINDS)
    def test_has_the_fingerprint_of_stacked(self, kind: str) -> None:
        prints = {ps.Model(x, None, frozenset(), "x").fingerprint for x in both(**KINDS[kind])}
        assert len(prints) == 1

    @pytest.mark.parametrize("axes", ["tensor=2", "fsdp=2,branch=2"])
    def test_over_a_mesh_it_is_not_fused(self, axes: str) -> None:
        stacked = tiny_decoder(tiny_config(mlp_width=32))
        mesh = ps.make_mesh(axes, jax.devices()[: 2 if axes == "tensor=2" else 4])
        placed = stacked.on(mesh).separated()
        for name, shape in layer_shapes(placed.config).items():
            assert placed.layers.layers[0][name].shape == shape
        ids, position = jnp.asarray([token_ids(1, 7)]), jnp.asarray([0])
        for one, other in zip(stacked(ids, position), jax.jit(placed)(ids, position), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        back = stacked.separated().on(mesh).on(None)
        assert "qkv" in back.layers.layers[0]
        for name, value in stacked.parameters().items():
            np.testing.assert_array_equal(back.parameters()[name], value)


class TestLoading:
    def test_gives_the_form_that_is_asked_for(self, tmp_path: Any) -> None:
        convert("tiny-random", tmp_path / "hf", "hf")
        for source in ("tiny-random", tmp_path / "hf"):
            stacked, separate, auto = (ps.load_model(source, layers=form) for form in ("stacked", "separate", "auto"))
            assert stacked.decoder.layers_are_stacked
            assert not separate.decoder.layers_are_stacked and not auto.decoder.layers_are_stacked
            assert stacked.fingerprint == separate.fingerprint == auto.fingerprint
            for name, shape in parameter_shapes(stacked.config).items():
                value = separate.decoder.parameters()[name]
                assert value.shape == shape
                np.testing.assert_array_equal(value, stacked.decoder.parameters()[name])

    def test_onto_a_mesh(self) -> None:
        mesh = ps.make_mesh("fsdp=2,tensor=2", jax.devices()[:4])
        stacked, separate = (ps.load_model("tiny-random", mesh=mesh, layers=form) for form in ("stacked", "separate"))
        assert stacked.fingerprint == separate.fingerprint
        stored = separate.decoder.layers.layers[0]["gate"]
        assert stored.sharding.shard_shape(stored.shape) == (stored.shape[0] // 2, stored.shape[1] // 2)
        for name, value in stacked.decoder.parameters().items():
            np.testing.assert_array_equal(np.asarray(separate.decoder.parameters()[name]), np.asarray(value))

    @pytest.mark.parametrize("wrong", ["stack", "", None, 3])
    def test_refuses_what_is_no_form(self, wrong: Any) -> None:
        with pytest.raises(ConfigError, match=r"layers is .* one of auto, stacked, separate"):
            ps.load_model("tiny-random", layers=wrong)


def test_the_whole_way_gives_the_same_tokens() -> None:
    """Workers, branches, an adapter, and answers from caches and from text."""
    stacked = talking_model()
    separate = ps.Model(stacked.decoder.separated(), stacked.tokenizer, stacked.stop_ids, stacked.name)
    answers = []
    for model in (stacked, separate):
        synth = ps.ParallelSynthesis(model, random_lora(model.config, 1))
        synth.set_mapper(random_mapper(1))
        branches = synth.work(["one", "two, longer"], max_new_tokens=6)
        written = synth.synthesize("what is it?", branches=branches, max_new_tokens=8)
        told = synth.synthesize(token_ids(4, 30), max_new_tokens=8)
        scored = synth.score(token_ids(5, 6), token_ids(6, 7), branches=branches)
        answers.append((written.token_ids, told.token_ids, scored))
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_array_equal(answers[0][1], answers[1][1])
    np.testing.assert_allclose(answers[0][2], answers[1][2], atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 32])
def test_a_step_copies_no_weight(tokens: int) -> None:
    """Sizes are large and differ, so that a shape tells which array is meant."""
    config = tiny_config(width=160, heads=6, kv_heads=2, head_width=32, mlp_width=416, layers=2, vocab_size=300)
    decoder = tiny_decoder(config).separated()
    layout = Layout(9, 25)
    array = np.zeros((1, layout.width + 2 * tokens), np.int32)
    static = {"layout": layout, "row_axes": (), "implementation": "xla"}
    args = Conditioning(), empty_heads(decoder, 1, "float32", 512), np.zeros(64, np.int32), array
    call = ProgramCall(STEP, args, static)
    text = Programs(decoder).get(call).as_text()
    for name, value in decoder.layers.layers[0].items():
        if value.ndim < 2:
            continue
        shape = ",".join(map(str, value.shape))
        turned = ",".join(map(str, value.shape[::-1]))
        made = re.findall(rf"= f32\[(?:{shape}|{turned})\]\S* (?!parameter|get-tuple-element)([\w-]+)\(", text)
        assert made == [], (name, made)
