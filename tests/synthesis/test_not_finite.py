"""Numbers that are not finite end a call with one line, wherever they come from: never a token, never a score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.branch import Segment
from psynth_jax.branches import Branches
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.engine.sampling import NOT_FINITE, sample
from psynth_jax.errors import AdapterError, NotFiniteError
from psynth_jax.kv.transfer import StoredSlots, read_slots
from psynth_jax.mapper import Mapper
from psynth_jax.nn.adapter import Lora
from psynth_jax.nn.decoder import Decoder
from psynth_jax.synthesis.sampling import SamplingOptions
from tests.rows import row_sampling
from tests.tiny import random_lora, random_mapper, tiny_config, tiny_decoder, tiny_model, token_ids

PROMPT, OTHER, TARGET = token_ids(1, 7), token_ids(2, 5), token_ids(3, 4)


def with_weight(name: str, place: tuple[int, ...], value: float, dtype: Any = jnp.float32) -> ps.Model:
    decoder = tiny_decoder(tiny_config(layers=2))
    parameters = {key: jnp.asarray(array, dtype) for key, array in decoder.parameters().items()}
    parameters[name] = parameters[name].at[place].set(value)
    return ps.Model(Decoder(decoder.config, parameters), None, frozenset(), "broken")


def refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises(NotFiniteError, match=match) as caught:
        call()
    assert isinstance(caught.value, ps.UserError) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def shared() -> dict[Any, Any]:
    """What all of them compile into: models of the same shapes run the same programs."""
    return ps.ParallelSynthesis(tiny_model(layers=2)).runner.programs._held


def over(model: ps.Model, shared: dict[Any, Any], adapter: Any = None) -> ps.ParallelSynthesis:
    synth = ps.ParallelSynthesis(model, adapter)
    synth.runner.programs._held = shared
    return synth


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("layers.q", (1, 0, 0, 0), np.nan),
        ("layers.down", (0, 3, 2), np.inf),
        ("final_norm", (5,), -np.inf),
        ("head", (13, 2), np.nan),
        ("head", (0, 2), np.inf),
    ],
)
def test_weights_end_every_call(
    shared: dict[Any, Any], name: str, place: tuple[int, ...], value: float, temperature: float
) -> None:
    synth = over(with_weight(name, place, value), shared)
    sampled = {"max_new_tokens": 4, "temperature": temperature}
    refused(lambda: synth.synthesize(PROMPT, **sampled), r"logits of the answer are not finite.*weights")
    refused(lambda: synth.synthesize([PROMPT, OTHER], **sampled), "logits of the answer to question 1")
    refused(lambda: synth.synthesize_text(PROMPT, [OTHER], **sampled), "logits of the answer")
    refused(lambda: synth.work([PROMPT, OTHER], **sampled), "logits of worker 1")
    refused(lambda: synth.score(PROMPT, TARGET), "logits of prompt and its target")
    refused(lambda: synth.score([PROMPT, OTHER], [TARGET, TARGET]), "logits of prompt 1 and its target")
    chat = synth.session()
    refused(lambda: chat.reply(PROMPT, **sampled), "logits of the answer")
    assert chat.tokens == 0


def test_encoded_caches_are_looked_at(shared: dict[Any, Any]) -> None:
    synth = over(with_weight("layers.k", (0, 1, 0, 0), np.nan), shared)
    refused(lambda: synth.encode([PROMPT]), "keys and values of text 1 are not finite numbers")
    refused(lambda: synth.encode([[PROMPT], [OTHER]]), "keys and values of text 1 of question 1")


def test_the_row_is_named(shared: dict[Any, Any]) -> None:
    """One token has an embedding that is not finite: who reads it is told, and nobody else."""
    synth = over(with_weight("embedding", (50, 3), np.nan), shared)
    fine, bad = [1, 2, 3], [1, 50, 3]
    assert np.isfinite(synth.score(fine, [4])).all()
    refused(lambda: synth.work([fine, bad, fine], max_new_tokens=1, temperature=1.0), "logits of worker 2")
    refused(lambda: synth.work([[fine], [fine, bad]], max_new_tokens=1, temperature=1.0), "worker 2 of question 2")
    refused(lambda: synth.encode([fine, bad]), "text 2")
    refused(lambda: synth.synthesize([fine, bad], max_new_tokens=1), "the answer to question 2")
    refused(lambda: synth.score([fine, bad], [[4], [4]]), "prompt 2")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_lora_is_refused_before_it_is_used(value: float) -> None:
    model = tiny_model(layers=2)
    lora = random_lora(model.config, 1)
    broken = {**lora.up, "q": lora.up["q"].at[(0,) * lora.up["q"].ndim].set(value)}
    with pytest.raises(AdapterError, match="up of 'q' has numbers that are not finite"):
        ps.ParallelSynthesis(model, Lora(lora.down, broken, lora.scale))


def test_a_mapper_that_is_not_finite() -> None:
    model = tiny_model(layers=2)
    branches = ps.ParallelSynthesis(model).encode([OTHER])
    synth = ps.ParallelSynthesis(model, Adapter(random_lora(model.config, 1), None))
    broken = dataclasses.replace(Mapper.from_arrays(random_mapper(1)), out_bias=jnp.full(4, np.nan))
    synth.runner.condition(dataclasses.replace(synth.runner.conditioning, mapper=broken))
    refused(lambda: synth.synthesize(PROMPT, branches, max_new_tokens=2), "weights, the adapter or the branches")
    refused(lambda: synth.score(PROMPT, TARGET, branches), "weights, the adapter or the branches")


def test_float16_that_overflows_says_what_to_do() -> None:
    synth = ps.ParallelSynthesis(with_weight("layers.v", (), 6e4, jnp.float16))
    refused(lambda: synth.synthesize(PROMPT, max_new_tokens=2), r"not finite numbers \(float16\).*bfloat16")


def test_a_float16_cache_says_what_to_do() -> None:
    synth = ps.ParallelSynthesis(with_weight("layers.v", (), 6e4), cache_dtype="float16")
    refused(lambda: synth.work([PROMPT], max_new_tokens=3), r"not finite numbers \(float32\).*cache_dtype")


def test_later_steps_are_looked_at() -> None:
    """The token that breaks a row is one that it writes itself."""
    synth = ps.ParallelSynthesis(tiny_model(layers=1))
    clean = synth.synthesize(PROMPT, max_new_tokens=6, temperature=1.0).token_ids
    model = synth.model
    parameters = dict(model.decoder.parameters())
    parameters["embedding"] = parameters["embedding"].at[clean[2], 0].set(np.inf)
    broken = dataclasses.replace(model, decoder=Decoder(model.config, parameters))
    written: list[int] = []
    other = ps.ParallelSynthesis(broken)
    with pytest.raises(NotFiniteError):
        other.synthesize(PROMPT, max_new_tokens=6, temperature=1.0, on_token=lambda piece: written.append(piece.token_id))
    assert written == clean[:3]
    chat = other.session()
    with pytest.raises(NotFiniteError):
        chat.reply(PROMPT, max_new_tokens=3, temperature=1.0)  # fed to be cached, though no token follows
    assert chat.tokens == 0


def test_rows_that_run_idle_may_hold_anything() -> None:
    """A row that has ended is fed no token: what it holds ends nobody's call."""
    logits = jnp.asarray([[0.0, 1.0], [np.nan, 1.0], [np.inf, 1.0], [-np.inf, 1.0]])
    for temperature in (0.0, 1.0):
        rows = row_sampling(SamplingOptions(temperature=temperature), [(0, row) for row in range(4)])
        tokens = sample(logits, rows, np.int32(0)).token
        assert tokens.tolist()[1:] == [NOT_FINITE] * 3 and int(tokens[0]) >= 0


def test_branches_that_are_not_finite() -> None:
    synth = ps.ParallelSynthesis(tiny_model(layers=2))
    branches = synth.encode([OTHER])
    arrays = {name: values.copy() for name, values in read_slots(branches.questions[0][0].segments[0].held).arrays.items()}
    arrays["v"][1, 0, 2, 3] = np.nan
    branch = dataclasses.replace(branches.questions[0][0], segments=(Segment(StoredSlots(arrays)),))
    broken = Branches([[branch]], branches.fingerprint, batched=False)
    refused(lambda: synth.synthesize(PROMPT, broken, max_new_tokens=2), "the branches hold NaN")
