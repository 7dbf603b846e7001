"""The public interface against the oracle: token ids in, the numbers and tokens of the whole method out.

The oracle (tests/oracle) shares no code with the package.  Everything here is float32 on CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: it is the oracle")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: the oracle runs its models")

import psynth_jax as ps  # noqa: E402
from psynth_jax.nn.adapter import Lora, targets_of  # noqa: E402
from tests.oracle import models, synthesis  # noqa: E402
from tests.oracle.synthesis import OracleBranch  # noqa: E402
from tests.slow import exhaustive_but  # noqa: E402

pytestmark = pytest.mark.torch

TOLERANCE = 1e-4  # absolute, in log-probabilities; the oracle's own float32 noise is below 1e-5
CLEAR = 1e-3  # a greedy choice won by less than this (in logits) would compare rounding, not methods
LENGTHS = (1, 7, 40, 13)
PREFIX_LENGTHS = {"exact": (0, 11, 3, 17), "reference_live": (1, 11, 3, 17)}
POSITIONS = ("exact", "reference_live")


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights twice: read by transformers and by the package."""

    torch_model: Any
    model: Any


@dataclasses.dataclass(frozen=True)
class Case:
    """One question with its branches, as token ids."""

    branches: list[OracleBranch]
    prompt: list[int]
    target: list[int]

    @property
    def texts(self) -> list[list[int]]:
        return [list(branch.generated_ids) for branch in self.branches]

    @property
    def prefixes(self) -> list[list[int]]:
        return [list(branch.prompt_ids) for branch in self.branches]


def make_case(
    seed: int,
    lengths: Sequence[int] = LENGTHS,
    prefix_lengths: Sequence[int] = PREFIX_LENGTHS["exact"],
    *,
    prompt: int = 9,
    target: int = 11,
    vocab_size: int = models.VOCAB_SIZE,
) -> Case:
    rng = np.random.default_rng(seed)

    def draw(count: int) -> list[int]:
        return [int(i) for i in rng.integers(0, vocab_size, count)]

    branches = [OracleBranch(draw(before), draw(kept)) for before, kept in zip(prefix_lengths, lengths, strict=True)]
    return Case(branches, draw(prompt), draw(target))


def expected_greedy(
    torch_model: Any, branches: Sequence[OracleBranch], prompt: Sequence[int], count: int, **settings: Any
) -> list[int]:
    """Return the oracle's greedy tokens, after checking that no choice was a near tie."""
    token_ids, margins = synthesis.greedy(torch_model, branches, prompt, count, **settings)
    assert min(margins) > CLEAR, "choose another seed: this answer hangs on rounding"
    return token_ids


def assert_close(ours: Any, expected: np.ndarray) -> None:
    ours = np.asarray(ours)
    assert ours.dtype == np.float32 and ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


def synthesizer(model: Any, positions: str, mapper: dict[str, np.ndarray] | None) -> Any:
    synth = ps.ParallelSynthesis(model, positions=positions)
    if mapper is not None:
        synth.set_mapper(mapper)
    return synth


MAPPED = [(family, "mapper") for family in models.TINY]
MAPPED += [(family, "no_mapper") for family in models.TINY]
in_tiers = pytest.mark.parametrize(
    ("pair", "mapper"),
    exhaustive_but(
        MAPPED,
        fast=[(models.FAST, "mapper"), (models.FAST, "no_mapper")],
        full=[*((family, "mapper") for family in models.IN_FULL), ("gemma3", "no_mapper")],
    ),
    indirect=True,
)


@pytest.fixture(scope="session", params=exhaustive_but(models.TINY, fast=[models.FAST], full=models.IN_FULL))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch_model = models.TINY[request.param]()
    directory = models.save(torch_model, tmp_path_factory.mktemp(request.param))
    return Pair(torch_model, ps.load_model(str(directory)))


@pytest.fixture
def mapper(request: pytest.FixtureRequest) -> dict[str, np.ndarray] | None:
    return synthesis.random_mapper(1) if request.param == "mapper" else None


@in_tiers
@pytest.mark.parametrize("positions", POSITIONS)
def test_score_reads_branches_as_the_oracle_does(pair, positions, mapper):
    case = make_case(21, prefix_lengths=PREFIX_LENGTHS[positions])
    synth = synthesizer(pair.model, positions, mapper)
    branches = synth.encode(case.texts, prefixes=case.prefixes)
    assert branches.count == len(LENGTHS)
    expected = synthesis.branch_logprobs(
        pair.torch_model, case.branches, case.prompt, case.target, positions=positions, mapper=mapper
    )
    assert_close(synth.score(case.prompt, case.target, branches=branches), expected)


@in_tiers
@pytest.mark.parametrize("positions", POSITIONS)
def test_synthesize_gives_the_oracles_greedy_tokens(pair, positions, mapper):
    case = make_case(122, prefix_lengths=PREFIX_LENGTHS[positions])
    synth = synthesizer(pair.model, positions, mapper)
    branches = synth.encode(case.texts, prefixes=case.prefixes)
    result = synth.synthesize(case.prompt, branches, max_new_tokens=10)
    expected = expected_greedy(pair.torch_model, case.branches, case.prompt, 10, positions=positions, mapper=mapper)
    assert list(result.token_ids) == expected
    assert (result.prompt_tokens, result.cached_tokens, result.finish_reason) == (len(case.prompt), sum(LENGTHS), "length")


def test_texts_without_prefixes_start_at_zero(pair):
    case = make_case(23, prefix_lengths=(0, 0, 0, 0))
    synth = synthesizer(pair.model, "exact", None)
    expected = synthesis.branch_logprobs(pair.torch_model, case.branches, case.prompt, case.target)
    assert_close(synth.score(case.prompt, case.target, branches=synth.encode(case.texts)), expected)


@pytest.mark.parametrize("positions", POSITIONS)
def test_workers_leave_the_branches_that_the_oracle_expects(pair, positions):
    """Workers share the first six tokens of their prompts, decode as one batch, and are read afterwards."""
    case = make_case(24, lengths=(1, 1, 1), prefix_lengths=(8, 13, 10))
    prompts = [case.prompt[:6] + prefix for prefix in case.prefixes]
    mapper = synthesis.random_mapper(2)
    synth = synthesizer(pair.model, positions, mapper)
    branches = synth.work(prompts, max_new_tokens=9)
    written = [expected_greedy(pair.torch_model, [], prompt, 9) for prompt in prompts]
    assert [list(ids) for ids in branches.token_ids] == written
    expected = synthesis.branch_logprobs(
        pair.torch_model,
        [OracleBranch(prompt, ids) for prompt, ids in zip(prompts, written, strict=True)],
        case.prompt,
        case.target,
        positions=positions,
        mapper=mapper,
    )
    assert_close(synth.score(case.prompt, case.target, branches=branches), expected)


@in_tiers
@pytest.mark.parametrize("recompute", [9, 20])
def test_recomputed_tokens_are_the_oracles_masked_form(pair, recompute, mapper):
    """Of branches of 1, 7, 20 and 13 tokens: all of two and a part of the others, all of all."""
    lengths = (1, 7, 20, 13)
    case = make_case(29, lengths)
    synth = synthesizer(pair.model, "exact", mapper)
    branches = synth.encode(case.texts, prefixes=case.prefixes)
    expected = synthesis.recomputed_logprobs(
        pair.torch_model, case.branches, case.prompt, case.target, recompute, mapper=mapper
    )
    found = synth.score(case.prompt, case.target, branches, recompute=recompute)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-6)
    result = synth.synthesize(case.prompt, branches, max_new_tokens=2, recompute=recompute)
    again = sum(min(recompute, length) for length in lengths)
    assert (result.prompt_tokens, result.cached_tokens) == (len(case.prompt) + again, sum(lengths) - again)


def test_whole_branches_recomputed_are_the_concatenated_text(pair):
    case = make_case(30, (1, 7, 20, 13))
    synth = synthesizer(pair.model, "exact", synthesis.random_mapper(1))  # a mapper has nothing to map here
    branches = synth.encode(case.texts, prefixes=case.prefixes)
    whole = [token for text in [*case.texts, case.prompt] for token in text]
    expected = synthesis.text_logprobs(pair.torch_model, whole, case.target)
    assert_close(synth.score(case.prompt, case.target, branches, recompute=1000), expected)


def test_question_alone_is_plain_text(pair):
    case = make_case(25)
    synth = synthesizer(pair.model, "exact", synthesis.random_mapper(1))  # a mapper has nothing to map here
    assert_close(synth.score(case.prompt, case.target), synthesis.text_logprobs(pair.torch_model, case.prompt, case.target))
    result = synth.synthesize(case.prompt, None, max_new_tokens=10)
    assert list(result.token_ids) == expected_greedy(pair.torch_model, [], case.prompt, 10)
    assert (result.prompt_tokens, result.cached_tokens) == (len(case.prompt), 0)


def test_text_baseline_reads_one_concatenated_prompt(pair):
    case = make_case(126)
    synth = synthesizer(pair.model, "exact", synthesis.random_mapper(1))
    whole = [token for text in [*case.texts, case.prompt] for token in text]
    result = synth.synthesize_text(case.prompt, case.texts, max_new_tokens=10)
    assert list(result.token_ids) == expected_greedy(pair.torch_model, [], whole, 10)
    assert (result.prompt_tokens, result.cached_tokens) == (len(whole), 0)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["llama", "qwen3_yarn"], indirect=True)
@pytest.mark.parametrize("positions", POSITIONS)
def test_questions_of_a_batch_do_not_touch_each_other(pair, positions):
    """Two questions with three and one branches, prompts and targets of other lengths: each has its own offset and count."""
    cases = [
        make_case(127, lengths=(5, 19, 2), prefix_lengths=(4, 2, 9), prompt=7, target=6),
        make_case(128, lengths=(31,), prefix_lengths=(12,), prompt=12, target=9),
    ]
    mapper = synthesis.random_mapper(3)
    synth = synthesizer(pair.model, positions, mapper)
    branches = synth.encode([case.texts for case in cases], prefixes=[case.prefixes for case in cases])
    scores = synth.score([case.prompt for case in cases], [case.target for case in cases], branches=branches)
    results = synth.synthesize([case.prompt for case in cases], branches, max_new_tokens=8)
    settings = {"positions": positions, "mapper": mapper}
    assert len(scores) == len(results) == len(cases)
    for case, score, result in zip(cases, scores, results, strict=True):
        assert_close(score, synthesis.branch_logprobs(pair.torch_model, case.branches, case.prompt, case.target, **settings))
        assert list(result.token_ids) == expected_greedy(pair.torch_model, case.branches, case.prompt, 8, **settings)


@pytest.mark.parametrize("pair", ["llama_llama3_rope", "qwen3_yarn"], indirect=True)
def test_some_of_the_branches_are_read_as_if_the_others_were_never_made(pair):
    case = make_case(29)
    mapper = synthesis.random_mapper(1)
    synth = synthesizer(pair.model, "exact", mapper)
    chosen = synth.encode(case.texts, prefixes=case.prefixes)[[3, 1]]
    kept = [case.branches[3], case.branches[1]]
    expected = synthesis.branch_logprobs(pair.torch_model, kept, case.prompt, case.target, mapper=mapper)
    assert_close(synth.score(case.prompt, case.target, branches=chosen), expected)


@pytest.mark.parametrize("pair", ["llama", "qwen3_yarn"], indirect=True)
def test_the_same_branches_are_read_under_another_mapper(pair):
    """Branches are never rewritten: the mapper that reads them can change, and change back."""
    case = make_case(30)
    synth = synthesizer(pair.model, "exact", None)
    branches = synth.encode(case.texts, prefixes=case.prefixes)
    for mapper in (synthesis.random_mapper(1), synthesis.random_mapper(2), synthesis.random_mapper(1)):
        synth.set_mapper(mapper)
        expected = synthesis.branch_logprobs(pair.torch_model, case.branches, case.prompt, case.target, mapper=mapper)
        assert_close(synth.score(case.prompt, case.target, branches=branches), expected)


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
def test_mapper_scalars_are_the_oracles(pair):
    case = make_case(31)
    mapper = synthesis.random_mapper(4)
    synth = synthesizer(pair.model, "exact", mapper)
    scalars = np.asarray(synth.mapper_scalars(synth.encode(case.texts, prefixes=case.prefixes)))
    layers = pair.torch_model.config.num_hidden_layers
    expected = np.array(
        [
            [[synthesis.mapper_scalars(mapper, span, len(LENGTHS), layer, layers) for span in LENGTHS]]
            for layer in range(layers)
        ]
    )
    assert scalars.dtype == np.float32 and scalars.shape == expected.shape
    np.testing.assert_allclose(scalars, expected, atol=1e-6, rtol=0)


def to_package(lora: synthesis.OracleLora, config: Any) -> Lora:
    """Split the heads that the oracle's factors keep flat."""
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
    down, up = {}, {}
    for target, (a, b) in lora.matrices.items():
        if target == "o":
            a = a.reshape(a.shape[0], config.num_attention_heads, -1, a.shape[-1])
        elif target in heads:
            b = b.reshape(*b.shape[:2], heads[target], -1)
        down[target], up[target] = jnp.asarray(a), jnp.asarray(b)
    return Lora(down, up, jnp.float32(lora.scale))


SOME_TARGETS = (("q", "k", "v", "o"), ("k", "v"), ("down",))
TARGETS = [(family, tuple(synthesis.PROJECTIONS)) for family in models.TINY]
TARGETS += [(family, targets) for family in ("llama", "qwen3") for targets in SOME_TARGETS]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    ("pair", "targets"),
    exhaustive_but(TARGETS, full=[case for case in TARGETS if case[0] in ("llama", "gemma3", "qwen3_moe")]),
    indirect=["pair"],
    ids=lambda part: part if isinstance(part, str) else ",".join(part),
)
def test_adapter_changes_the_synthesizer_and_not_its_branches(pair, positions, targets):
    can_have = targets_of(pair.model.config)
    if not {*targets} <= {*can_have}:
        targets = tuple(target for target in targets if target in can_have)  # no LoRA may be on experts
    case = make_case(32, prefix_lengths=PREFIX_LENGTHS[positions])
    lora, mapper = synthesis.random_lora(pair.torch_model, 5, 5, targets=targets), synthesis.random_mapper(1)
    synth = ps.ParallelSynthesis(pair.model, adapter=to_package(lora, pair.torch_model.config), positions=positions)
    synth.set_mapper(mapper)
    branches = synth.encode(case.texts, prefixes=case.prefixes)
    expected = synthesis.branch_logprobs(
        pair.torch_model, case.branches, case.prompt, case.target, positions=positions, mapper=mapper, lora=lora
    )
    assert_close(synth.score(case.prompt, case.target, branches=branches), expected)


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
@pytest.mark.parametrize("prefixes", [None, [[3, 5], []]], ids=["no_prefixes", "one_empty_prefix"])
def test_a_live_branch_without_prefix_is_refused(pair, prefixes):
    synth = synthesizer(pair.model, "reference_live", None)
    with pytest.raises(ps.UserError, match="prefix"):
        synth.encode([[1, 2, 3], [4, 5]], prefixes=prefixes)


WORKER_PROMPTS = (
    "List what plants need to grow.\n",
    "Explain in one sentence how plants make sugar, for a reader who is twelve years old.\n",
    "Name a mistake that people make with house plants:",
)
WORKER_TEXTS = (
    "Plants need light, water, air and minerals from the soil.",
    "Leaves catch sunlight and use it to turn water and carbon dioxide into sugar and oxygen.",
    " They water them too often.",
)
QUESTION = "\nIn short, plants need"
ANSWER = " light, water and air, but not too much water."


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("positions", POSITIONS)
def test_real_weights(smollm2, positions):
    pair, tokenizer = smollm2

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    written = [OracleBranch(ids(p), ids(t)) for p, t in zip(WORKER_PROMPTS, WORKER_TEXTS, strict=True)]
    prompt, target = ids(QUESTION), ids(ANSWER)
    mapper = synthesis.random_mapper(6)
    synth = synthesizer(pair.model, positions, None)
    branches = synth.encode([b.generated_ids for b in written], prefixes=[b.prompt_ids for b in written])
    for params in (None, mapper):
        if params is not None:
            synth.set_mapper(params)
        settings = {"positions": positions, "mapper": params}
        expected = synthesis.branch_logprobs(pair.torch_model, written, prompt, target, **settings)
        assert_close(synth.score(prompt, target, branches=branches), expected)
    assert_close(synth.score(prompt, target), synthesis.text_logprobs(pair.torch_model, prompt, target))
    synth = synthesizer(pair.model, positions, None)
    expected_ids = expected_greedy(pair.torch_model, written, prompt, 8, positions=positions)
    assert pair.torch_model.config.eos_token_id not in expected_ids
    assert list(synth.synthesize(prompt, branches, max_new_tokens=8).token_ids) == expected_ids


@pytest.fixture(scope="module")
def smollm2(smollm2_path) -> tuple[Pair, Any]:
    folder, name = smollm2_path.parent, smollm2_path.name
    torch_model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    return Pair(torch_model.eval(), ps.load_model("smollm2-135m")), tokenizer
