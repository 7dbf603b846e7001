"""Negative log-likelihoods of targets, by task."""

from __future__ import annotations

import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.data.record import BranchText, Record
from psynth_jax.errors import InputError
from psynth_jax.evaluation.likelihood import by_task, negative_log_likelihoods
from psynth_jax.prompts import baseline_messages

RECORDS = [
    Record("1", "a", "Which?", (BranchText("The long one of the two reports."), BranchText("Short.")), "red"),
    Record("2", "b", "Who?", (BranchText("One.", "told before"),), "two words"),
    Record("3", "a", "When?", (BranchText("At noon."),), "noon"),
]


@pytest.fixture(scope="module")
def synth() -> ps.ParallelSynthesis:
    return ps.ParallelSynthesis(ps.load_model("tiny-random"))


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_branches_are_scored_as_one_by_one(synth: ps.ParallelSynthesis, batch: int) -> None:
    expected = []
    encode = synth.model.tokenizer.encode  # type: ignore[union-attr]
    for record in RECORDS:
        prefixes = [encode(branch.prefix) for branch in record.branches]
        branches = synth.encode([branch.text for branch in record.branches], prefixes)
        expected.append(-float(np.mean(synth.score(record.query, record.target, branches))))
    done: list[int] = []
    (found,) = negative_log_likelihoods([synth], RECORDS, "branches", batch, done.append)
    assert found == pytest.approx(expected, abs=1e-4) and sum(done) == len(RECORDS)
    assert len({round(each, 3) for each in found}) == len(RECORDS)


def test_text_is_scored_after_the_concatenated_text(synth: ps.ParallelSynthesis) -> None:
    texts = [[branch.text for branch in record.branches] for record in RECORDS]
    chats = [baseline_messages(record.query, each) for record, each in zip(RECORDS, texts, strict=True)]
    alone = [synth.score([chat], [record.target])[0] for chat, record in zip(chats, RECORDS, strict=True)]
    (found,) = negative_log_likelihoods([synth], RECORDS, "text")
    assert found == pytest.approx([-float(logp.mean()) for logp in alone], abs=1e-4)


def test_tasks_have_means_and_paired_differences() -> None:
    found = by_task(RECORDS, [1.0, 5.0, 2.0], [2.0, 5.0, 3.0])
    assert list(found) == ["a", "b", "all"]
    assert (found["a"].records, found["a"].first.value) == (2, 1.5)
    difference = found["a"].difference
    assert difference is not None and (difference.value, difference.low, difference.high) == (-1.0, -1.0, -1.0)
    assert found["all"].first.value == pytest.approx(8 / 3)
    assert list(by_task(RECORDS[:1], [1.0], None)) == ["a"]
    with pytest.raises(InputError, match="there is no record"):
        by_task([], [], None)


def test_caches_are_computed_once_for_a_sink(synth: ps.ParallelSynthesis, monkeypatch: pytest.MonkeyPatch) -> None:
    model = synth.model
    with_sink = ps.ParallelSynthesis(model, adapter=ps.Adapter(None, None, sink=(3, 4)))
    encoded: list[tuple[int, ...]] = []
    encode = ps.ParallelSynthesis.encode

    def noted(self: ps.ParallelSynthesis, *arguments: object) -> object:
        encoded.append(tuple(self.adapter.sink))
        return encode(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ps.ParallelSynthesis, "encode", noted)
    first, second, third = negative_log_likelihoods([synth, ps.ParallelSynthesis(model), with_sink], RECORDS)
    assert encoded == [(), (3, 4)]
    assert first == second != third
