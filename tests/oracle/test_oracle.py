"""The oracle against what must hold of any correct reading of the method, so that it can be trusted as a yardstick."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is written in torch")
pytest.importorskip("transformers", reason="the oracle runs transformers' models")

from transformers import AutoModelForCausalLM, DynamicCache  # noqa: E402

from tests.oracle import models, synthesis  # noqa: E402
from tests.oracle.synthesis import OracleBranch  # noqa: E402
from tests.slow import exhaustive_but  # noqa: E402

pytestmark = pytest.mark.torch

NOISE = 2e-5  # float32, measured against the same oracle in float64: below 1e-5
DIFFERENT = 1e-2  # what an actual mistake changes is far above this


def token_ids(rng: np.random.Generator, count: int) -> list[int]:
    return [int(i) for i in rng.integers(0, models.VOCAB_SIZE, count)]


@pytest.fixture(scope="module", params=exhaustive_but(models.TINY, fast=[models.FAST], full=models.IN_FULL))
def model(request: pytest.FixtureRequest) -> Any:
    return models.TINY[request.param]()


@pytest.fixture(scope="module")
def case() -> tuple[list[OracleBranch], list[int], list[int]]:
    rng = np.random.default_rng(5)
    branches = [OracleBranch(token_ids(rng, p), token_ids(rng, g)) for p, g in [(5, 1), (11, 7), (3, 40), (17, 13)]]
    return branches, token_ids(rng, 9), token_ids(rng, 11)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32
    return float(np.abs(a - b).max())


def test_one_branch_without_prompt_is_plain_text(model, case):
    """Positions 0..G-1, then the prompt at G: nothing but one sequence."""
    branches, prompt, target = case
    text = branches[2].generated_ids
    expected = synthesis.text_logprobs(model, [*text, *prompt], target)
    assert distance(synthesis.branch_logprobs(model, [OracleBranch([], text)], prompt, target), expected) < NOISE


def test_no_branch_is_the_question_alone(model, case):
    _, prompt, target = case
    expected = synthesis.text_logprobs(model, prompt, target)
    assert distance(synthesis.branch_logprobs(model, [], prompt, target), expected) < NOISE


def test_order_of_branches_does_not_matter(model, case):
    branches, prompt, target = case
    mapper = synthesis.random_mapper(1)
    there = synthesis.branch_logprobs(model, branches, prompt, target, mapper=mapper)
    back = synthesis.branch_logprobs(model, branches[::-1], prompt, target, mapper=mapper)
    assert distance(there, back) < NOISE


@pytest.mark.parametrize(("positions", "first_kept"), [("exact", 0), ("reference_live", -1)])
def test_keys_are_those_of_the_positions_asked_for(model, case, positions, first_kept):
    """RoPE sees distances only: the worker run at positions shifted by -P must leave the keys that un-rotation gives."""
    branch = case[0][3]
    prompt, generated = len(branch.prompt_ids), len(branch.generated_ids)
    cache = DynamicCache()
    synthesis.read(model, [*branch.prompt_ids, *branch.generated_ids], cache, -prompt)
    first = prompt + first_kept
    for (keys, values), layer in zip(synthesis.branch_cache(model, branch, positions), cache.layers, strict=True):
        torch.testing.assert_close(keys, layer.keys[:, :, first : first + generated], atol=1e-4, rtol=0)
        torch.testing.assert_close(values, layer.values[:, :, first : first + generated], atol=1e-4, rtol=0)


def test_zero_last_layer_of_the_mapper_is_the_identity(model, case):
    branches, prompt, target = case
    drawn = synthesis.random_mapper(2)
    zeroed = {**drawn, "out_kernel": np.zeros((32, 4), np.float32), "out_bias": np.zeros(4, np.float32)}
    plain = synthesis.branch_logprobs(model, branches, prompt, target)
    assert distance(synthesis.branch_logprobs(model, branches, prompt, target, mapper=zeroed), plain) == 0.0


@pytest.mark.parametrize("output", range(4))
def test_each_mapper_output_has_its_own_effect(model, case, output):
    branches, prompt, target = case
    bias = np.zeros(4, np.float32)
    bias[output] = 1.0
    mapper = {**synthesis.random_mapper(2), "out_kernel": np.zeros((32, 4), np.float32), "out_bias": bias}
    plain = synthesis.branch_logprobs(model, branches, prompt, target)
    assert distance(synthesis.branch_logprobs(model, branches, prompt, target, mapper=mapper), plain) > DIFFERENT


def test_what_must_show_shows(model, case):
    """Mode, mapper, adapter, one token of one branch and one position of one prompt: each moves the numbers clearly."""
    branches, prompt, target = case
    first, second, longest, last = branches
    one_token_less = [first, second, OracleBranch(longest.prompt_ids, longest.generated_ids[:-1]), last]
    one_prompt_less = [first, OracleBranch(second.prompt_ids[1:], second.generated_ids), longest, last]
    plain = synthesis.branch_logprobs(model, branches, prompt, target)
    changed = {
        "mode": synthesis.branch_logprobs(model, branches, prompt, target, positions="reference_live"),
        "mapper": synthesis.branch_logprobs(model, branches, prompt, target, mapper=synthesis.random_mapper(1)),
        "adapter": synthesis.branch_logprobs(model, branches, prompt, target, lora=synthesis.random_lora(model, 1, 5)),
        "token": synthesis.branch_logprobs(model, one_token_less, prompt, target),
        "prompt": synthesis.branch_logprobs(model, one_prompt_less, prompt, target),
        "branch": synthesis.branch_logprobs(model, branches[:3], prompt, target),
    }
    assert {name: distance(values, plain) > DIFFERENT for name, values in changed.items()} == dict.fromkeys(changed, True)


@pytest.mark.slow
@pytest.mark.parametrize("target", synthesis.PROJECTIONS)
def test_adapter_leaves_branches_and_weights_alone(model, case, target):
    if target not in synthesis.projections_of(model):
        pytest.skip("a mixture of experts has no such projection")
    branches, prompt, answer = case
    lora = synthesis.random_lora(model, 3, 5, targets=[target])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = synthesis.branch_logprobs(model, branches, prompt, answer)
    assert distance(synthesis.branch_logprobs(model, branches, prompt, answer, lora=lora), plain) > DIFFERENT
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # A question without branches is all that the adapter sees, so there it equals the merged model.
    with synthesis.applied(model, lora):
        merged = synthesis.text_logprobs(model, prompt, answer)
    assert distance(synthesis.branch_logprobs(model, [], prompt, answer, lora=lora), merged) < NOISE


@pytest.mark.parametrize("positions", ["exact", "reference_live"])
def test_greedy_tokens_are_the_most_likely_ones(model, case, positions):
    """Token by token over the cache gives what teacher forcing of the whole answer gives."""
    branches, prompt, _ = case
    mapper = synthesis.random_mapper(1)
    answer, margins = synthesis.greedy(model, branches, prompt, 6, positions=positions, mapper=mapper)
    cache, offset = synthesis.context(model, branches, positions, mapper)
    forced = synthesis.read(model, [*prompt, *answer], cache, offset)[len(prompt) - 1 : -1]
    assert forced.argmax(-1).tolist() == answer and len(set(answer)) > 1
    top = forced.topk(2).values
    np.testing.assert_allclose(margins, top[:, 0] - top[:, 1], atol=NOISE)


def test_mapper_scalars_by_hand():
    """Hidden units that pass one feature each, where the sigmoid of log n is n / (n + 1)."""
    mapper = {
        "hidden_kernel": np.zeros((3, 32), np.float32),
        "hidden_bias": np.zeros(32, np.float32),
        "out_kernel": np.zeros((32, 4), np.float32),
        "out_bias": np.array([0.0, 0.0, 0.0, 0.25], np.float32),
    }
    for feature in range(3):
        mapper["hidden_kernel"][feature, 10 + feature] = 1.0
        mapper["out_kernel"][10 + feature, feature] = 0.5
    span = math.log(41) * 41 / 42
    count = math.log(5) * 5 / 6
    depth = 0.5 / (1 + math.exp(-0.5))
    raw = [math.tanh(0.5 * span), math.tanh(0.5 * count), math.tanh(0.5 * depth), math.tanh(0.25)]
    expected = np.array([1 + 0.1 * raw[0], 0.1 * raw[1], 1 + 0.1 * raw[2], 0.1 * raw[3]], np.float32)
    np.testing.assert_allclose(synthesis.mapper_scalars(mapper, 40, 4, 1, 3), expected, atol=1e-6)
    assert synthesis.mapper_scalars(mapper, 40, 4, 0, 1)[2] == 1.0  # one layer: depth 0


@pytest.mark.parametrize("branch", [OracleBranch([1], []), OracleBranch([], [1])])
def test_impossible_branches_are_refused(branch):
    with pytest.raises(ValueError, match="token"):
        synthesis.branch_cache(models.TINY["llama"](), branch, "reference_live")


@pytest.mark.parametrize("name", ["llama_llama3_rope", "qwen3_yarn"])
def test_scaled_rope_slows_some_planes_only(name):
    """Kept, half slowed and slowed planes all occur, and tests use positions beyond the original window."""
    model = models.TINY[name]()
    rope = model.config.rope_parameters
    frequencies = model.model.rotary_emb.inv_freq.numpy()
    plain = rope["rope_theta"] ** (-np.arange(len(frequencies)) / len(frequencies))
    slowed = plain / frequencies
    assert np.isclose(slowed, 1.0, rtol=1e-3).any() and np.isclose(slowed, rope["factor"], rtol=1e-3).any()
    assert ((slowed > 1.1) & (slowed < 0.9 * rope["factor"])).any()
    assert (model.model.rotary_emb.attention_scaling > 1.1) == (name == "qwen3_yarn")


def test_saved_models_load_again(tmp_path, model, case):
    _, prompt, target = case
    models.save(model, tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.suffix != ".json") == [".safetensors"]
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **plain).eval()
    expected = synthesis.text_logprobs(model, prompt, target)
    assert distance(synthesis.text_logprobs(again, prompt, target), expected) == 0.0
