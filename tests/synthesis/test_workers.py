"""Workers as one batch: shared prompts, ragged rows, decoding against teacher forcing."""

import numpy as np

from psynth_jax.config import DecoderConfig, PlainRope
from psynth_jax.nn.decoder import Decoder
from psynth_jax.synthesis.engine import Engine, slots_needed
from psynth_jax.synthesis.sampling import SamplingOptions
from psynth_jax.synthesis.step import Reader
from psynth_jax.synthesis.workers import WorkerPrompt, decode_workers, encode_workers, shared_prefix

CONFIG = DecoderConfig(
    family="llama", vocab_size=97, width=22, layers=3, heads=6, kv_heads=2, head_width=10, mlp_width=31, norm_eps=1e-5,
    rope=PlainRope(theta=1e4), max_positions=4096,
)  # fmt: skip
COMMON = tuple(range(3, 40))


def engine() -> Engine:
    return Engine(Decoder.random(CONFIG, seed=1))


def scores(machine: Engine, row: list[int]) -> np.ndarray:
    cache = machine.allocate(1, slots_needed(0, len(row), 0))
    return machine.score(Reader(), [row], cache, np.zeros(1, np.int32))[0]


def test_shared_prefix_leaves_every_row_a_token() -> None:
    assert shared_prefix([COMMON, COMMON]) == len(COMMON) - 1
    assert shared_prefix([(*COMMON, 1), (*COMMON, 2, 3)]) == len(COMMON)
    assert shared_prefix([COMMON]) == 0
    assert shared_prefix([COMMON[:9], COMMON[:9]]) == 0


def test_a_worker_writes_the_same_alone_and_among_others() -> None:
    machine, options = engine(), SamplingOptions(max_new_tokens=7)
    prompts = [(*COMMON, 50), (*COMMON, 51, 52, 53), (9, 8, 7)]
    together = decode_workers(
        machine, [WorkerPrompt(int(i == 2), i % 2, p) for i, p in enumerate(prompts)], options, frozenset(), None, "exact"
    )
    for prompt, branch in zip(prompts, together, strict=True):
        (alone,) = decode_workers(machine, [WorkerPrompt(0, 0, prompt)], options, frozenset(), None, "exact")
        assert branch.token_ids == alone.token_ids
        assert len(branch.token_ids) == 7 and branch.finish_reason == "length"
        assert branch.shift == len(prompt) and branch.span == 7


def test_chunked_prefill_equals_one_token_at_a_time() -> None:
    machine = engine()
    row = list(np.random.default_rng(0).integers(0, 97, 1030))
    whole = scores(machine, row)
    assert whole.shape == (1029,)
    np.testing.assert_allclose(whole[:40], scores(machine, row[:41]), atol=1e-4)
    np.testing.assert_allclose(whole[:700], scores(machine, row[:701]), atol=1e-4)


def test_decoded_and_encoded_branches_hold_the_same_cache() -> None:
    machine, options = engine(), SamplingOptions(max_new_tokens=9)
    workers = [WorkerPrompt(0, i, (*COMMON, 50 + i)) for i in range(2)]
    written = decode_workers(machine, workers, options, frozenset(), None, "exact")
    given = [WorkerPrompt(0, i, w.prompt, given=b.token_ids) for i, (w, b) in enumerate(zip(workers, written, strict=True))]
    for live, fixed in zip(written, encode_workers(machine, given, None, "exact"), strict=True):
        for one, other in zip(live.segments, fixed.segments, strict=True):
            a = one.cache.slots_of(one.row, one.first, one.length)
            b = other.cache.slots_of(other.row, other.first, other.length)
            np.testing.assert_allclose(a[0], b[0], atol=1e-4)
            np.testing.assert_allclose(a[1], b[1], atol=1e-4)


def test_the_same_shapes_compile_once() -> None:
    machine, options = engine(), SamplingOptions(max_new_tokens=5)
    workers = [WorkerPrompt(0, i, (*COMMON, 50 + i)) for i in range(2)]
    first = decode_workers(machine, workers, options, frozenset(), None, "exact")
    compiled = machine.programs.compilations
    second = decode_workers(machine, workers, options, frozenset(), None, "exact")
    assert machine.programs.compilations == compiled
    assert [b.token_ids for b in first] == [b.token_ids for b in second]
