"""Workers as one batch: shared prompts, rows of different lengths, decoding against teacher forcing."""

import numpy as np
import pytest

from psynth_jax.branch import Branch
from psynth_jax.config import DecoderConfig, PlainRope
from psynth_jax.kv.transfer import read_slots
from psynth_jax.model import Model
from psynth_jax.nn.decoder import Decoder
from psynth_jax.synthesis.outputs import Cached
from psynth_jax.synthesis.runner import Runner
from psynth_jax.synthesis.sampling import SamplingOptions
from psynth_jax.synthesis.workers import WorkerPrompt, encode_texts, generate_workers

pytestmark = pytest.mark.usefixtures("programs_stay")

CONFIG = DecoderConfig(
    family="llama", vocab_size=97, width=22, layers=3, heads=6, kv_heads=2, head_width=10, mlp_width=31, norm_eps=1e-5,
    rope=PlainRope(theta=1e4), max_positions=4096,
)  # fmt: skip
COMMON = tuple(range(3, 40))


@pytest.fixture(scope="module")
def runner() -> Runner:
    model = Model(Decoder.random(CONFIG, seed=1), None, frozenset(), "random")
    return Runner(model, "auto", None, CONFIG.vocab_size)


def written(runner: Runner, workers: list[WorkerPrompt], new_tokens: int) -> list[Branch]:
    return generate_workers(runner, workers, SamplingOptions(max_new_tokens=new_tokens), frozenset(), None, "exact")


def scores(runner: Runner, text: list[int]) -> np.ndarray:
    sequence = runner.sequence(text[:-1], 0, Cached(runner, "a text"), 0, targets=text[1:])
    runner.run([sequence])
    return np.concatenate(sequence.scores)


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([COMMON, COMMON], len(COMMON) - 1),  # the last token is run: another one is sampled behind it
        ([(*COMMON, 1), (*COMMON, 2, 3)], len(COMMON)),
        ([COMMON], 0),
        ([COMMON[:9], COMMON[:9]], 0),
    ],
)
def test_workers_run_what_their_prompts_share_once(runner: Runner, prompts: list[tuple[int, ...]], shared: int) -> None:
    runner.forget_prompts()
    before = runner.scheduler.counts.copy()
    written(runner, [WorkerPrompt(0, number, prompt) for number, prompt in enumerate(prompts)], 2)
    counts = runner.scheduler.counts - before
    assert counts["prefix_hit_tokens"] == shared
    assert counts["prefill_tokens"] == sum(map(len, prompts)) - shared


def test_a_worker_writes_the_same_alone_and_among_others(runner: Runner) -> None:
    prompts = [(*COMMON, 50), (*COMMON, 51, 52, 53), (9, 8, 7)]
    together = written(runner, [WorkerPrompt(int(i == 2), i % 2, p) for i, p in enumerate(prompts)], 7)
    for prompt, branch in zip(prompts, together, strict=True):
        (alone,) = written(runner, [WorkerPrompt(0, 0, prompt)], 7)
        assert branch.token_ids == alone.token_ids
        assert len(branch.token_ids) == 7 and branch.finish_reason == "length"
        assert branch.shift == len(prompt) and branch.span == 7


def test_chunked_prefill_equals_one_token_at_a_time(runner: Runner) -> None:
    text = np.random.default_rng(0).integers(0, 97, 1030).tolist()
    whole = scores(runner, text)
    assert whole.shape == (1029,)
    np.testing.assert_allclose(whole[:40], scores(runner, text[:41]), atol=1e-4)
    np.testing.assert_allclose(whole[:700], scores(runner, text[:701]), atol=1e-4)


def test_decoded_and_encoded_branches_hold_the_same_cache(runner: Runner) -> None:
    workers = [WorkerPrompt(0, i, (*COMMON, 50 + i)) for i in range(2)]
    live = written(runner, workers, 9)
    given = [WorkerPrompt(0, i, w.prompt, given=b.token_ids) for i, (w, b) in enumerate(zip(workers, live, strict=True))]
    fixed = encode_texts(runner, given, None, "exact")
    for one, other in zip(live, fixed, strict=True):
        ours, theirs = (read_slots(branch.segments[0].held).arrays for branch in (one, other))
        np.testing.assert_allclose(ours["k"], theirs["k"], atol=1e-4)
        np.testing.assert_allclose(ours["v"], theirs["v"], atol=1e-4)


def test_the_same_shapes_compile_once(runner: Runner) -> None:
    workers = [WorkerPrompt(0, i, (*COMMON, 50 + i)) for i in range(2)]
    first = written(runner, workers, 5)
    compiled = runner.programs.compilations
    second = written(runner, workers, 5)
    assert runner.programs.compilations == compiled
    assert [b.token_ids for b in first] == [b.token_ids for b in second]
