"""An adapter with a sink: what every chat begins with, read once, before branches that stand after it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.synthesis.runner import asked_of
from tests.tiny import token_ids

SINK = tuple(token_ids(70, 5))
TEXTS = [token_ids(71, 9), token_ids(72, 4)]
PROMPT, TARGET = token_ids(73, 7), token_ids(74, 6)


@pytest.fixture(scope="module")
def sinking(synth: ps.ParallelSynthesis) -> ps.ParallelSynthesis:
    """The adapter of `synth`, with a sink."""
    return ps.ParallelSynthesis(synth.model, dataclasses.replace(synth.adapter, sink=SINK))


def test_is_a_branch_of_its_own_that_others_are_encoded_after(
    synth: ps.ParallelSynthesis, sinking: ps.ParallelSynthesis
) -> None:
    by_hand = ps.Branches.join(synth.encode([SINK]), synth.encode(TEXTS, [SINK, SINK]))
    expected = synth.score(PROMPT, TARGET, by_hand)
    branches = sinking.encode(TEXTS)
    assert branches.token_ids == TEXTS
    np.testing.assert_allclose(sinking.score(PROMPT, TARGET, branches), expected, atol=1e-5)
    answer = sinking.synthesize(PROMPT, branches, max_new_tokens=5)
    assert answer.token_ids == synth.synthesize(PROMPT, by_hand, max_new_tokens=5).token_ids
    assert answer.cached_tokens == len(SINK) + 9 + 4
    session = sinking.session(branches)
    assert session.reply(PROMPT, max_new_tokens=5).token_ids == answer.token_ids
    np.testing.assert_allclose(sinking.mapper_scalars(branches), synth.mapper_scalars(by_hand)[:, :, 1:])
    without = synth.score(PROMPT, TARGET, synth.encode(TEXTS))
    assert np.abs(without - expected).max() > 1e-2


def test_stands_before_a_prefix_that_does_not_begin_with_it(sinking: ps.ParallelSynthesis) -> None:
    written = token_ids(75, 3)
    texts = [TEXTS[0]] * 3
    added, there, bare = sinking.encode(texts, [written, [*SINK, *written], None])
    scores = [sinking.score(PROMPT, TARGET, branch) for branch in (added, there, bare)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(scores[0] - scores[2]).max() > 1e-3


def test_is_read_with_what_workers_wrote(synth: ps.ParallelSynthesis, sinking: ps.ParallelSynthesis) -> None:
    prompts = [[*SINK, *token_ids(76 + number, 4)] for number in range(2)]
    live = sinking.work(prompts, max_new_tokens=6)
    by_hand = ps.Branches.join(synth.encode([SINK]), synth.work(prompts, max_new_tokens=6))
    np.testing.assert_allclose(sinking.score(PROMPT, TARGET, live), synth.score(PROMPT, TARGET, by_hand), atol=1e-5)


@pytest.mark.slow
def test_is_read_by_every_question_of_a_batch_on_a_mesh(sinking: ps.ParallelSynthesis) -> None:
    texts = [TEXTS, [token_ids(80, 5)], [token_ids(81, 3), token_ids(82, 8)], [token_ids(83, 7)]]
    prompts = [token_ids(84 + number, 5) for number in range(4)]
    expected = [
        sinking.synthesize(p, sinking.encode(t), max_new_tokens=5).token_ids for p, t in zip(prompts, texts, strict=True)
    ]
    spread = ps.ParallelSynthesis(sinking.model, sinking.adapter, mesh=ps.make_mesh("data=2,branch=4"))
    branches = spread.encode(texts)
    found = spread.synthesize(prompts, branches, max_new_tokens=5)
    assert [answer.token_ids for answer in found] == expected
    for question in asked_of(spread.runner, spread.checked_groups(branches), 4):
        read = {run.run.block for branch in question.branches for run in branch.runs}
        assert {block // 4 for block in read} == {question.block // 4}, "its sink is where its own rows are"
