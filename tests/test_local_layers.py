"""A model with local layers, Gemma 3 in small, where it differs from the others: beyond the window, and at its edge.

What it computes within the window is tested with the other families: tests/test_against_torch.py.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.config import LocalLayers, PlainRope
from psynth_jax.nn.adapter import ATTENTION_TARGETS
from psynth_jax.nn.local import FAR, Layer, by_kind, of_layer, window_of
from tests.tiny import random_lora, tiny_config, tiny_decoder, tiny_model, token_ids

LOCAL = LocalLayers(window=48, global_every=2, rope=PlainRope(theta=500.0))
GEMMA = {
    "family": "gemma3_text",
    "local": LOCAL,
    "qk_norm": True,
    "norms_after": True,
    "norms_from_one": True,
    "scaled_embedding": True,
    "activation": "gelu_tanh",
    "query_scale": 0.3,
    "tied_head": True,
}


def test_layers_take_turns() -> None:
    config = tiny_config(**{**GEMMA, "local": LocalLayers(window=8, global_every=3, rope=PlainRope(theta=500.0))})
    angles = by_kind(config, lambda rope: (jnp.float32(rope.theta), jnp.float32(-rope.theta)))
    scanned = [Layer(jnp.int32(number)) for number in range(7)]
    known = [Layer.known(config, number) for number in range(7)]
    for layers in (scanned, known):
        kinds = [float(of_layer(config, angles, layer)[0]) for layer in layers]
        assert kinds == [500.0, 500.0, 1e4, 500.0, 500.0, 1e4, 500.0]
        assert window_of(config, 8, layers[0]) is None, "a row that fits into the window needs none"
        assert int(window_of(config, None, layers[0])) == 8, "branches may be longer than the row"
    assert [int(window_of(config, 100, layer)) for layer in scanned[:3]] == [8, 8, FAR]
    assert window_of(config, 100, known[2]) is None, "a layer that is known to see everything needs none"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ps.Model]:
    """The same weights twice, five layers with a window of 40: read by transformers and by the package."""
    from tests.oracle import models

    theirs = models.gemma3(5, sliding_window=40, num_hidden_layers=5)
    return theirs, ps.load_model(str(models.save(theirs, tmp_path_factory.mktemp("gemma"))))


def their_logits(model: Any, ids: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0])


@pytest.mark.torch
class TestAgainstTransformers:
    """Texts three times as long as the window, which transformers masks by itself."""

    def test_score(self, pair: tuple[Any, ps.Model]) -> None:
        theirs, ours = pair
        ids = token_ids(3, 130)
        found = ps.ParallelSynthesis(ours).score(ids[:70], ids[70:])
        expected = jax.nn.log_softmax(their_logits(theirs, ids)[69:-1])[np.arange(60), ids[70:]]
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_decode(self, pair: tuple[Any, ps.Model]) -> None:
        """Token by token, each reading its own cache through the window, from a prompt that is longer than it."""
        theirs, ours = pair
        prompt = token_ids(4, 61)
        answer = list(ps.ParallelSynthesis(ours).synthesize(prompt, max_new_tokens=40).token_ids)
        assert their_logits(theirs, [*prompt, *answer])[60:-1].argmax(axis=-1).tolist() == answer

    def test_workers_that_write_past_the_window(self, pair: tuple[Any, ps.Model]) -> None:
        """Rows of their own, though they share a prompt: each writes what transformers writes."""
        theirs, ours = pair
        shared = token_ids(6, 30)
        prompts = [[*shared, *token_ids(seed, 20)] for seed in (7, 8)]
        branches = ps.ParallelSynthesis(ours).work(prompts, max_new_tokens=12)
        for prompt, written in zip(prompts, branches.token_ids, strict=True):
            assert their_logits(theirs, [*prompt, *written])[49:-1].argmax(axis=-1).tolist() == list(written)


@pytest.mark.parametrize("length", [20, 100])
def test_a_turn_of_branches_equals_text_where_one_branch_stands_before_the_prompt(length: int) -> None:
    """One branch from position 0 and the prompt behind it is plain text, also beyond the window of 48."""
    synth = ps.ParallelSynthesis(tiny_model(**GEMMA))
    text, prompt, target = token_ids(1, length), token_ids(2, 9), token_ids(3, 8)
    through = synth.score(prompt, target, branches=synth.encode([text]))
    tolerance = 1e-5 if length == 20 else 2e-5  # sums over more tokens
    np.testing.assert_allclose(through, synth.score([*text, *prompt], target), atol=tolerance)
    moved = synth.encode([text], prefixes=[token_ids(4, 11)])
    assert not np.allclose(synth.score(prompt, target, branches=moved), through, atol=1e-3)


@pytest.mark.parametrize("positions", ["exact", "reference_live"])
def test_branches_longer_than_the_window_are_read_as_the_oracle_reads_them(positions: str) -> None:
    """Each through the window from where it is re-encoded to; token by token, and a prompt at once."""
    model = tiny_model(**GEMMA)
    ours, oracle = (ps.ParallelSynthesis(model, positions=positions, implementation=name) for name in ("xla", "reference"))
    texts = [token_ids(1, 100), token_ids(2, 70), token_ids(3, 20)]
    branches = ours.encode(texts, prefixes=[token_ids(5, 7)] * 3)
    prompt, target = token_ids(3, 10), token_ids(4, 14)
    scores = [synth.score(prompt, target, branches=branches) for synth in (ours, oracle)]
    np.testing.assert_allclose(*scores, atol=5e-5)
    answers = [synth.synthesize(prompt, branches, max_new_tokens=12) for synth in (ours, oracle)]
    assert answers[0].token_ids == answers[1].token_ids
    np.testing.assert_allclose(answers[0].logprobs, answers[1].logprobs, atol=5e-5)


def test_workers_share_a_prompt_that_is_longer_than_the_window() -> None:
    synth, shared = ps.ParallelSynthesis(tiny_model(**GEMMA)), token_ids(6, 70)
    prompts = [[*shared, *token_ids(seed, 9)] for seed in (7, 8)]
    together = synth.work(prompts, max_new_tokens=10).token_ids
    assert together == [synth.work([prompt], max_new_tokens=10).token_ids[0] for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["branch=4,tensor=2", "data=2,fsdp=2,branch=2"])
def test_sharded_is_unsharded(axes: str) -> None:
    config = tiny_config(**{**GEMMA, "width": 24, "mlp_width": 32, "vocab_size": 96})
    decoder = tiny_decoder(config)
    expected, found = (
        ps.ParallelSynthesis(ps.Model(decoder.on(mesh), None, frozenset(), "tiny")) for mesh in (None, ps.make_mesh(axes))
    )
    ids = token_ids(5, 90, 96)
    np.testing.assert_allclose(found.score(ids[:60], ids[60:]), expected.score(ids[:60], ids[60:]), atol=1e-4)
    texts = [token_ids(seed, 30 * seed, 96) for seed in (1, 2, 3)]
    scores = [synth.score(ids[:8], ids[8:20], branches=synth.encode(texts)) for synth in (found, expected)]
    np.testing.assert_allclose(*scores, atol=1e-4)


@pytest.mark.slow
def test_an_adapter_learns_through_windows() -> None:
    """The gradient of a LoRA on a text beyond the window: folded blocks against the materialised form."""
    decoder = tiny_decoder(tiny_config(**GEMMA))
    lora, ids = random_lora(decoder.config, 3, targets=ATTENTION_TARGETS), jnp.asarray([token_ids(5, 100)])

    def gradient(implementation: str) -> Any:
        def loss(down: Any) -> Any:
            adapter = type(lora)(down, lora.up, lora.scale)
            hidden, _, _ = decoder(ids, jnp.zeros(1, jnp.int32), lora=adapter, implementation=implementation)
            return (hidden * jax.random.normal(jax.random.key(1), hidden.shape)).sum()

        return jax.grad(loss)(lora.down)

    found, expected = gradient("xla"), gradient("reference")
    for target, one in expected.items():
        np.testing.assert_allclose(found[target], one, atol=1e-5 * float(jnp.abs(one).max()), err_msg=target)


def test_the_fingerprints_of_other_families_do_not_know_of_local_layers() -> None:
    assert "local" not in tiny_config().spelled and "window" in tiny_config(**GEMMA).spelled
