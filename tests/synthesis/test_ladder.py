"""Ways of computing the same numbers, each compared with the next: the ladder from one token to a batch of questions.

Everything goes through `ParallelSynthesis` with a random adapter and a random mapper, on a tiny random model in float32.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.branch import Segment
from psynth_jax.branches import Branches
from psynth_jax.buckets import Buckets
from psynth_jax.engine.step import Conditioning
from psynth_jax.kv.pool import Pool
from psynth_jax.kv.transfer import read_slots
from psynth_jax.nn.decoder import Decoder
from psynth_jax.synthesis.outputs import Cached
from psynth_jax.synthesis.runner import asked_of
from tests.tiny import random_lora, random_mapper, token_ids
from tests.trees import tree_bytes

NOISE = 2e-5  # of float32 log-probabilities
DIFFERENT = 1e-2  # what a mistake changes is far above this

TEXTS = [token_ids(1, 5), token_ids(2, 19), token_ids(3, 8)]
PREFIXES = [token_ids(4, 7), token_ids(5, 3), token_ids(6, 12)]
STRANGER, STRANGERS_PREFIX = token_ids(9, 13), token_ids(10, 9)
PROMPT, TARGET = token_ids(7, 9), token_ids(8, 6)
OTHER_PROMPT, OTHER_TARGET = token_ids(11, 4), token_ids(12, 11)
POSITIONS = ("exact", "reference_live")


def with_positions(synth: ps.ParallelSynthesis, positions: Any) -> ps.ParallelSynthesis:
    """The same synthesizer with other positions, which the pool knows nothing of."""
    return ps.ParallelSynthesis(synth.model, synth.adapter, positions)


def assert_close(one: Any, other: Any) -> None:
    np.testing.assert_allclose(one, other, atol=NOISE, rtol=0)


def assert_different(one: Any, other: Any) -> None:
    assert np.abs(np.asarray(one) - np.asarray(other)).max() > DIFFERENT


@pytest.fixture(scope="module")
def three(synth: ps.ParallelSynthesis) -> Branches:
    return synth.encode(TEXTS, prefixes=PREFIXES)


@pytest.fixture(scope="module")
def expected(synth: ps.ParallelSynthesis, three: Branches) -> np.ndarray:
    return synth.score(PROMPT, TARGET, branches=three)


@pytest.fixture(scope="module")
def two_questions(synth: ps.ParallelSynthesis) -> Branches:
    return synth.encode([TEXTS, [STRANGER]], prefixes=[PREFIXES, [STRANGERS_PREFIX]])


def test_scores_are_log_probabilities(expected: np.ndarray) -> None:
    assert expected.shape == (len(TARGET),) and expected.dtype == np.float32
    assert np.isfinite(expected).all() and (expected < 0).all()


def test_order_of_branches_does_not_matter(synth: ps.ParallelSynthesis, three: Branches, expected: np.ndarray) -> None:
    for order in ([2, 0, 1], [1, 2, 0]):
        assert_close(synth.score(PROMPT, TARGET, branches=three[order]), expected)
    assert_different(synth.score(PROMPT, TARGET, branches=three[[0, 1, 1]]), expected)


def test_a_branch_that_is_not_selected_is_absent(synth: ps.ParallelSynthesis, three: Branches, expected: np.ndarray) -> None:
    never_made = synth.encode([TEXTS[0], TEXTS[2]], prefixes=[PREFIXES[0], PREFIXES[2]])
    selected = synth.score(PROMPT, TARGET, branches=three[[0, 2]])
    assert_close(selected, synth.score(PROMPT, TARGET, branches=never_made))
    assert_different(selected, expected)


def test_joined_is_together(synth: ps.ParallelSynthesis, expected: np.ndarray) -> None:
    first = synth.encode(TEXTS[:1], prefixes=PREFIXES[:1])
    others = synth.encode(TEXTS[1:], prefixes=PREFIXES[1:])
    assert_close(synth.score(PROMPT, TARGET, branches=Branches.join(first, others)), expected)


def test_saved_and_loaded_is_live(
    synth: ps.ParallelSynthesis, three: Branches, expected: np.ndarray, tmp_path: Path
) -> None:
    three.save(str(tmp_path / "saved"))
    loaded = Branches.load(str(tmp_path / "saved"))
    assert_close(synth.score(PROMPT, TARGET, branches=loaded), expected)
    live = synth.synthesize(PROMPT, three, max_new_tokens=6)
    assert synth.synthesize(PROMPT, loaded, max_new_tokens=6).token_ids == live.token_ids


def test_several_segments_of_a_branch_are_one(synth: ps.ParallelSynthesis, three: Branches, expected: np.ndarray) -> None:
    """A branch cut in two, its pieces in the wrong order: the keys know their positions."""
    short, long, last = three.questions[0]
    (whole,) = long.segments
    cut = (Segment(whole.held.part(7, whole.length - 7), 7), Segment(whole.held.part(0, 7), 0))
    branches = Branches([[short, dataclasses.replace(long, segments=cut), last]], three.fingerprint, batched=False)
    assert_close(synth.score(PROMPT, TARGET, branches=branches), expected)


@contextlib.contextmanager
def poisoned(pool: Pool, branches: Branches) -> Iterator[None]:
    """Fill every slot that no branch owns with NaN: those of others, prompts, what is free; put them back after."""
    owned = np.zeros((pool.allocator.blocks, pool.allocator.slots), bool)
    for group in branches.questions:
        for branch in group:
            for segment in branch.segments:
                for run in segment.held.runs:
                    owned[run.block, run.first : run.first + run.length] = True
    assert not owned.all()
    before = jax.tree.map(np.array, pool.heads)
    kept = owned[None, :, None, :, None]
    pool.replace(jax.tree.map(lambda heads: jnp.where(kept, heads, jnp.nan), pool.heads))
    try:
        yield
    finally:
        pool.replace(jax.tree.map(jnp.asarray, before))


def test_slots_outside_of_branches_may_hold_nan(synth: ps.ParallelSynthesis, three: Branches, expected: np.ndarray) -> None:
    clean = synth.synthesize(PROMPT, three, max_new_tokens=6)
    with poisoned(synth.runner.pool, three):
        np.testing.assert_array_equal(synth.score(PROMPT, TARGET, branches=three), expected)
        assert synth.synthesize(PROMPT, three, max_new_tokens=6).token_ids == clean.token_ids
        again = synth.encode(TEXTS, prefixes=PREFIXES)
        np.testing.assert_array_equal(synth.score(PROMPT, TARGET, branches=again), expected)


def test_a_question_with_fewer_branches_reads_no_padding(synth: ps.ParallelSynthesis, two_questions: Branches) -> None:
    """What pads its branches and its runs points to slot 0 of the pool, which holds NaN here."""
    chosen = Branches.batch([two_questions[0][[1, 2, 2]], two_questions[1]])
    prompts, targets = [PROMPT, OTHER_PROMPT], [TARGET, OTHER_TARGET]
    clean = synth.score(prompts, targets, branches=chosen)
    with poisoned(synth.runner.pool, chosen):
        for one, other in zip(synth.score(prompts, targets, branches=chosen), clean, strict=True):
            np.testing.assert_array_equal(one, other)


def test_calls_leave_no_trace(synth: ps.ParallelSynthesis, three: Branches, expected: np.ndarray) -> None:
    def held() -> list[np.ndarray]:
        slots = [read_slots(branch.segments[0].held) for branch in three.questions[0]]
        return [values for each in slots for values in each.arrays.values()]

    before = held()
    first = synth.synthesize(PROMPT, three, max_new_tokens=6)
    assert_different(synth.score(OTHER_PROMPT, TARGET, branches=three), expected)
    np.testing.assert_array_equal(synth.score(PROMPT, TARGET, branches=three), expected)
    assert synth.synthesize(PROMPT, three, max_new_tokens=6).token_ids == first.token_ids
    for values, old in zip(held(), before, strict=True):
        np.testing.assert_array_equal(values, old)


def test_a_question_scores_alone_as_among_strangers(
    synth: ps.ParallelSynthesis, two_questions: Branches, three: Branches, expected: np.ndarray
) -> None:
    """Questions with three branches and with one, prompts and targets of different lengths."""
    scores = synth.score([PROMPT, OTHER_PROMPT], [TARGET, OTHER_TARGET], branches=two_questions)
    assert_close(scores[0], expected)
    stranger = synth.encode([STRANGER], prefixes=[STRANGERS_PREFIX])
    assert_close(scores[1], synth.score(OTHER_PROMPT, OTHER_TARGET, branches=stranger))
    as_list = synth.score([PROMPT, OTHER_PROMPT], [TARGET, OTHER_TARGET], branches=[three, stranger])
    for one, other in zip(as_list, scores, strict=True):
        assert_close(one, other)


def test_a_question_is_answered_alone_as_among_strangers(
    synth: ps.ParallelSynthesis, two_questions: Branches, three: Branches
) -> None:
    together = synth.synthesize([PROMPT, OTHER_PROMPT], two_questions, max_new_tokens=7)
    alone = synth.synthesize(PROMPT, three, max_new_tokens=7)
    assert together[0].token_ids == alone.token_ids
    assert [result.prompt_tokens for result in together] == [len(PROMPT), len(OTHER_PROMPT)]
    assert [result.cached_tokens for result in together] == [sum(map(len, TEXTS)), len(STRANGER)]
    assert alone.finish_reason == "length" and len(alone.token_ids) == 7


@pytest.mark.parametrize("positions", POSITIONS)
def test_what_workers_wrote_scores_as_the_same_tokens_encoded(synth: ps.ParallelSynthesis, positions: str) -> None:
    synth = with_positions(synth, positions)
    written = synth.work(PREFIXES, max_new_tokens=9)
    fixed = synth.encode(written.token_ids, prefixes=PREFIXES)
    assert written.lengths == [9, 9, 9] and fixed.token_ids == written.token_ids
    scores = synth.score(PROMPT, TARGET, branches=written)
    assert_close(scores, synth.score(PROMPT, TARGET, branches=fixed))


def test_position_modes_differ(synth: ps.ParallelSynthesis, expected: np.ndarray) -> None:
    live = with_positions(synth, "reference_live")
    assert_different(live.score(PROMPT, TARGET, branches=live.encode(TEXTS, prefixes=PREFIXES)), expected)


def common_prompts() -> list[list[int]]:
    common = token_ids(20, 21)
    return [[*common, *token_ids(21, 4)], [*common, *token_ids(22, 1)], [*common, *token_ids(23, 6)]]


@pytest.mark.slow
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_shared_prefix_is_as_good_as_none(synth: ps.ParallelSynthesis, positions: str) -> None:
    synth = with_positions(synth, positions)
    runner = synth.runner
    common = len(common_prompts()[0]) - 4

    def hits(run: Callable[[], Branches]) -> tuple[Branches, int]:
        runner.forget_prompts()
        before = runner.scheduler.counts["prefix_hit_tokens"]
        return run(), runner.scheduler.counts["prefix_hit_tokens"] - before

    def alone(run: Callable[[int], Branches]) -> Branches:
        found = [hits(lambda number=number: run(number)) for number in range(3)]
        assert [shared for _, shared in found] == [0] * 3
        return Branches.join(*(branches for branches, _ in found))

    prompts = common_prompts()
    ways = [
        (
            lambda: synth.work(prompts, max_new_tokens=9),
            lambda number: synth.work([prompts[number]], max_new_tokens=9),
        ),
        (
            lambda: synth.encode(TEXTS, prefixes=prompts),
            lambda number: synth.encode([TEXTS[number]], prefixes=[prompts[number]]),
        ),
    ]
    for together, of_one in ways:
        shared, shared_tokens = hits(together)
        assert shared_tokens == 2 * common
        apart = alone(of_one)
        assert shared.token_ids == apart.token_ids
        assert_close(synth.score(PROMPT, TARGET, branches=shared), synth.score(PROMPT, TARGET, branches=apart))


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(synth: ps.ParallelSynthesis, three: Branches, expected: np.ndarray) -> None:
    """The whole way in bfloat16: caches, adapter and attention; branches of one precision are read in the other."""
    parameters = {name: value.astype(jnp.bfloat16) for name, value in synth.model.decoder.parameters().items()}
    model = dataclasses.replace(synth.model, decoder=Decoder(synth.model.config, parameters))
    low = ps.ParallelSynthesis(model, synth.adapter)
    branches = low.encode(TEXTS, prefixes=PREFIXES)
    assert low.runner.pool.heads.k.dtype == jnp.bfloat16
    scores = low.score(PROMPT, TARGET, branches=branches)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=0.3, rtol=0)
    np.testing.assert_allclose(low.score(PROMPT, TARGET, branches=three), scores, atol=0.3, rtol=0)
    assert low.synthesize(PROMPT, low.work(PREFIXES, max_new_tokens=4), max_new_tokens=4).finish_reason == "length"


@pytest.mark.slow
def test_int8_branches_are_close_and_small(synth: ps.ParallelSynthesis, three: Branches, expected: np.ndarray) -> None:
    """Workers write int8; what reads them differs by the rounding to 8 bits, far less than by anything else."""
    low = ps.ParallelSynthesis(synth.model, synth.adapter, cache_dtype="int8")
    branches = low.encode(TEXTS, prefixes=PREFIXES)
    small, wide = low.runner.pool.heads, synth.runner.pool.heads
    assert branches.questions[0][0].segments[0].held.pool is low.runner.pool and small.k.dtype == jnp.int8
    width = synth.model.config.head_width
    a_slot = [tree_bytes(heads) / heads.slots for heads in (small, wide)]
    assert a_slot[0] / a_slot[1] == (width + 4) / (4 * width)
    scores = low.score(PROMPT, TARGET, branches=branches)
    assert 1e-5 < np.abs(scores - expected).max() < 0.15
    materialised = ps.ParallelSynthesis(synth.model, synth.adapter, implementation="reference", cache_dtype="int8")
    assert_close(materialised.score(PROMPT, TARGET, branches=branches), scores)
    written = low.work(PREFIXES, max_new_tokens=6)
    assert written.questions[0][0].segments[0].held.pool.heads.quantised
    assert low.synthesize(PROMPT, written, max_new_tokens=3).cached_tokens == 18


def test_workers_run_the_base_model(synth: ps.ParallelSynthesis, plain: ps.ParallelSynthesis) -> None:
    assert synth.work(PREFIXES, max_new_tokens=9).token_ids == plain.work(PREFIXES, max_new_tokens=9).token_ids


def test_one_branch_without_prompt_is_the_text_before_the_prompt(plain: ps.ParallelSynthesis) -> None:
    """With the identity mapper and no adapter, the branch's text and the prompt are one sequence."""
    branches = plain.encode([TEXTS[1]])
    through_cache = plain.score(PROMPT, TARGET, branches=branches)
    assert_close(through_cache, plain.score([*TEXTS[1], *PROMPT], TARGET))
    assert_different(through_cache, plain.score(PROMPT, TARGET))
    behind_prefix = plain.encode([TEXTS[1]], prefixes=[PREFIXES[1]])
    assert_different(plain.score(PROMPT, TARGET, branches=behind_prefix), through_cache)


@pytest.mark.slow
def test_workers_and_synthesizers_share_a_batch(synth: ps.ParallelSynthesis, three: Branches) -> None:
    """By the scale: a row of 0 is the base model reading the same slots, mapper and adapter left out."""
    runner, adapter, text = synth.runner, synth.adapter, [*PROMPT, *TARGET]
    (asked,) = asked_of(runner, [three.questions[0]], 1)

    def scores(conditioning: Conditioning, *scales: float) -> list[np.ndarray]:
        sequences = []
        for scale in scales:
            row = runner.sequence(
                text[:-1],
                0,
                Cached(runner, "a row"),
                asked.block,
                branches=asked.branches,
                position=asked.position,
                scale=scale,
                targets=text[1:],
            )
            row.conditioning = conditioning
            sequences.append(row)
        runner.run(sequences)
        return [np.concatenate(row.scores) for row in sequences]

    whole = Conditioning(adapter.mapper, adapter.lora)
    (base,), (adapted,) = scores(Conditioning(), 0.0), scores(whole, 1.0)
    shared = scores(whole, 0.0, 1.0)
    assert_different(base, adapted)
    assert_close(shared[0], base)
    assert_close(shared[1], adapted)


def test_mapper_and_adapter_both_count(
    synth: ps.ParallelSynthesis, plain: ps.ParallelSynthesis, three: Branches, expected: np.ndarray
) -> None:
    adapter = random_lora(synth.model.config, 1)
    only_adapter, other_mapper = (ps.ParallelSynthesis(synth.model, adapter) for _ in range(2))
    other_mapper.set_mapper(random_mapper(2))
    assert_different(plain.score(PROMPT, TARGET, branches=three), expected)
    assert_different(only_adapter.score(PROMPT, TARGET, branches=three), expected)
    assert_different(other_mapper.score(PROMPT, TARGET, branches=three), expected)
    other_mapper.set_mapper(random_mapper(1))
    np.testing.assert_array_equal(other_mapper.score(PROMPT, TARGET, branches=three), expected)


@pytest.mark.slow
def test_a_long_prompt_in_chunks_is_one_call(
    synth: ps.ParallelSynthesis, three: Branches, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = token_ids(30, 21)

    def numbers() -> tuple[np.ndarray, list[int]]:
        answer = synth.synthesize(prompt, three, max_new_tokens=6)
        return synth.score(prompt, TARGET, branches=three), answer.token_ids

    whole, tokens = numbers()
    monkeypatch.setattr(synth.runner.machine, "buckets", Buckets(decode=(1,), prefill=((1, 8),)))
    chunked, chunked_tokens = numbers()
    assert_close(chunked, whole)
    assert chunked_tokens == tokens


def test_materialised_is_folded(synth: ps.ParallelSynthesis, three: Branches, expected: np.ndarray) -> None:
    reference = ps.ParallelSynthesis(synth.model, synth.adapter, implementation="reference")
    assert_close(reference.score(PROMPT, TARGET, branches=three), expected)


def distribution(synth: ps.ParallelSynthesis, prompt: Sequence[int], branches: Branches) -> np.ndarray:
    """Log-probabilities of all tokens after a prompt, some at a time."""
    rows, vocabulary = 14, synth.model.config.vocab_size
    found = []
    for first in range(0, vocabulary, rows):
        tokens = [[min(first + row, vocabulary - 1)] for row in range(rows)]
        found += synth.score([prompt] * rows, tokens, branches=[branches] * rows)
    return np.concatenate(found)[:vocabulary]


def test_greedy_tokens_are_the_most_likely_ones(synth: ps.ParallelSynthesis, three: Branches) -> None:
    answer = synth.synthesize(PROMPT, three, max_new_tokens=6).token_ids
    for given in (0, 1, 5):
        logp = distribution(synth, [*PROMPT, *answer[:given]], three)
        assert np.exp(logp.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
        assert int(logp.argmax()) == answer[given]


class TestStreaming:
    """Pieces of text, put together, are the text; tokens that are reported are the tokens."""

    def test_of_an_answer(self, talking: ps.ParallelSynthesis) -> None:
        pieces: list[Any] = []
        branches = talking.encode(["first of all", "then"])
        options = {"max_new_tokens": 24}
        streamed = talking.synthesize("and now?", branches, on_token=pieces.append, **options)
        offline = talking.synthesize("and now?", branches, **options)
        assert (streamed.text, streamed.token_ids) == (offline.text, offline.token_ids)
        assert "".join(pieces) == offline.text != ""
        assert [piece.token_id for piece in pieces] == offline.token_ids
        assert {(piece.question, piece.worker) for piece in pieces} == {(0, None)}
        assert any(piece == "" for piece in pieces), "no piece was held back: the text has no incomplete character"

    def test_of_workers(self, talking: ps.ParallelSynthesis) -> None:
        pieces: list[Any] = []
        prompts = [["one", "two"], ["three"]]
        branches = talking.work(prompts, max_new_tokens=24, on_token=pieces.append)
        assert branches.count == [2, 1]
        for question, worker in [(0, 0), (0, 1), (1, 0)]:
            mine = [piece for piece in pieces if (piece.question, piece.worker) == (question, worker)]
            assert "".join(mine) == branches.texts[question][worker] != ""
            end = talking.model.stop_ids if branches.finish_reasons[question][worker] == "stop" else ()
            assert [piece.token_id for piece in mine] == [*branches.token_ids[question][worker], *end]

    def test_up_to_a_stop_text(self, talking: ps.ParallelSynthesis) -> None:
        whole = talking.synthesize("and now?", max_new_tokens=24)
        place = next(
            i for i in range(3, 20) if whole.text[i : i + 2].isprintable() and whole.text.find(whole.text[i : i + 2]) == i
        )
        stop = whole.text[place : place + 2]
        pieces: list[Any] = []
        cut = talking.synthesize("and now?", max_new_tokens=24, stop=[stop, "never"], on_token=pieces.append)
        assert cut.finish_reason == "stop"
        assert cut.text == whole.text[:place] == "".join(pieces)
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
        assert talking.model.tokenizer.decode(cut.token_ids) == cut.text

    def test_up_to_a_stop_token(self, synth: ps.ParallelSynthesis, three: Branches) -> None:
        whole = synth.synthesize(PROMPT, three, max_new_tokens=6)
        place = next(i for i in range(1, 6) if whole.token_ids[i] not in whole.token_ids[:i])
        pieces: list[Any] = []
        cut = synth.synthesize(PROMPT, three, max_new_tokens=6, stop=[whole.token_ids[place]], on_token=pieces.append)
        assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:place], "stop")
        assert [piece.token_id for piece in pieces] == whole.token_ids[: place + 1]

    def test_a_worker_that_stops_early_has_a_shorter_branch(self, synth: ps.ParallelSynthesis) -> None:
        whole = synth.work(PREFIXES, max_new_tokens=9)
        stop = whole.token_ids[0][4]
        place = [ids.index(stop) if stop in ids else 9 for ids in whole.token_ids]
        cut = synth.work(PREFIXES, max_new_tokens=9, stop=[stop])
        assert cut.token_ids == [ids[:end] for ids, end in zip(whole.token_ids, place, strict=True)]
        assert cut.finish_reasons == ["stop" if end < 9 else "length" for end in place]
        assert 0 < cut.lengths[0] < 9
        assert [branch.span for branch in cut.questions[0]] == cut.lengths
        fixed = synth.encode(cut.token_ids, prefixes=PREFIXES)
        assert_close(synth.score(PROMPT, TARGET, branches=cut), synth.score(PROMPT, TARGET, branches=fixed))
