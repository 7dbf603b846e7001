"""On a real language model: what stands only in a branch reaches the answer through its cache, and through nothing else."""

from __future__ import annotations

import pytest

import psynth_jax as ps

pytestmark = pytest.mark.weights

TEXTS = [
    "The maintenance log is complete. The code word for the vault is marigold. Nothing else was found.",
    "The weather report for Tuesday: light rain in the morning, sun after noon, and a wind from the west.",
    "The kitchen inventory lists twelve eggs, two bags of flour, and a jar of honey.",
]


@pytest.fixture(scope="module")
def synth() -> ps.ParallelSynthesis:
    return ps.ParallelSynthesis(ps.load_model("smollm2-135m"))


def test_code_word_is_known_through_its_branch_only(synth: ps.ParallelSynthesis) -> None:
    tokenizer = synth.model.tokenizer
    assert tokenizer is not None
    asked = tokenizer.chat([{"role": "user", "content": "What is the code word for the vault?"}])
    asked += tokenizer.encode("The code word for the vault is")
    word = tokenizer.encode(" marigold")
    branches = synth.encode(TEXTS)

    def known(read: ps.Branches | None) -> float:
        return float(synth.score(asked, word, read).sum())

    assert known(branches[[0]]) > -4
    assert known(branches) > -6
    for wrong in (branches[[1]], branches[[1, 2]], None):
        assert known(wrong) < -10


@pytest.mark.slow
def test_workers_write_words_and_the_answer_streams(synth: ps.ParallelSynthesis) -> None:
    question = "Why is the sky blue?"
    branches = synth.work(ps.worker_prompts(question, ps.load_roles(), 3), max_new_tokens=24)
    assert branches.count == 3 and len(set(branches.texts)) == 3
    pieces: list[str] = []
    result = synth.synthesize(question, branches, max_new_tokens=24, on_token=pieces.append)
    assert "".join(pieces) == result.text and "atmosphere" in result.text
    assert result.cached_tokens == sum(branches.lengths)
    assert result.text == synth.synthesize(question, branches, max_new_tokens=24).text
