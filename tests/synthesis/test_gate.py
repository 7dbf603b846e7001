"""The quality gate: which route answers, what it costs, and what a stream shows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.errors import ContextLengthError, InputError, ModelMismatchError
from psynth_jax.synthesis.gate import Gate
from psynth_jax.synthesis.outputs import StreamedToken
from psynth_jax.synthesis.result import Confidence
from psynth_jax.synthesis.sampling import SamplingOptions
from tests.rows import row_sampling

QUESTIONS = ["Which harbour?", "Which city?", "Which river?"]
TEXTS = [["Oslo has a harbour.", "It is cold."], ["Rome is old."], ["The Tiber.", "The Aare.", "Po"]]


def gated(synth: ps.ParallelSynthesis, gate: Gate | float) -> ps.ParallelSynthesis:
    """The same synthesizer behind a gate."""
    return ps.ParallelSynthesis(synth.model, gate=gate)


@pytest.fixture(scope="module")
def branches(talking: ps.ParallelSynthesis) -> ps.Branches:
    return talking.encode(TEXTS)


@pytest.fixture(scope="module")
def from_branches(talking: ps.ParallelSynthesis, branches: ps.Branches) -> list[ps.SynthesisResult]:
    return talking.synthesize(QUESTIONS, branches, 6)


@pytest.fixture(scope="module")
def from_text(talking: ps.ParallelSynthesis) -> list[ps.SynthesisResult]:
    return talking.synthesize_text(QUESTIONS, TEXTS, 6)


def between(results: list[ps.SynthesisResult]) -> float:
    """A threshold that the least sure answer fails and the others pass."""
    sure = sorted(result.confidence.likelihood for result in results if result.confidence)
    return (sure[0] + sure[1]) / 2


class TestConfidence:
    def test_is_of_the_tokens_that_were_sampled(
        self, talking: ps.ParallelSynthesis, branches: ps.Branches, from_branches: list[ps.SynthesisResult]
    ) -> None:
        """Against the same tokens, teacher forced."""
        for number, result in enumerate(from_branches):
            scored = talking.score(QUESTIONS[number], result.token_ids, branches[number])
            np.testing.assert_allclose(result.logprobs, scored, atol=2e-5)
            if result.finish_reason == "length":
                assert result.confidence is not None
                assert result.confidence.likelihood == pytest.approx(math.exp(np.mean(scored)), abs=1e-5)

    def test_margin_is_that_of_the_two_best(self) -> None:
        from psynth_jax.engine.sampling import sample

        logits = np.log(np.array([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]], np.float32))
        found = sample(logits, row_sampling(SamplingOptions(), [(0, 0)] * 2), np.int32(0))
        np.testing.assert_allclose(found.margin, [0.2, 0.7], atol=1e-6)
        np.testing.assert_allclose(found.logprob, np.log([0.5, 0.8]), atol=1e-6)


def assert_same(one: ps.SynthesisResult, other: ps.SynthesisResult, route: str) -> None:
    assert (one.token_ids, one.route) == (other.token_ids, route)
    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


class TestRoutes:
    def test_a_threshold_of_0_is_branches(
        self, talking: ps.ParallelSynthesis, branches: ps.Branches, from_branches: list[ps.SynthesisResult]
    ) -> None:
        for one, other in zip(gated(talking, 0.0).synthesize(QUESTIONS, branches, 6), from_branches, strict=True):
            assert_same(one, other, "branches")

    def test_a_threshold_of_1_is_text(
        self, talking: ps.ParallelSynthesis, branches: ps.Branches, from_text: list[ps.SynthesisResult]
    ) -> None:
        for one, other in zip(gated(talking, 1.0).synthesize(QUESTIONS, branches, 6), from_text, strict=True):
            assert_same(one, other, "text")

    def test_doubted_answers_come_from_the_texts(
        self,
        talking: ps.ParallelSynthesis,
        branches: ps.Branches,
        from_branches: list[ps.SynthesisResult],
        from_text: list[ps.SynthesisResult],
    ) -> None:
        threshold = between(from_branches)
        found = gated(talking, threshold).synthesize(QUESTIONS, branches, 6)
        assert sorted(result.route for result in found) == ["branches", "branches", "text"]
        for one, cached, text in zip(found, from_branches, from_text, strict=True):
            right = cached if one.route == "branches" else text
            assert one.token_ids == right.token_ids
            assert one.confidence is not None and cached.confidence is not None
            assert one.confidence.likelihood == pytest.approx(cached.confidence.likelihood, abs=1e-5)
            assert one.confidence.margin == pytest.approx(cached.confidence.margin, abs=1e-5)
            assert (one.confidence.likelihood > threshold) == (one.route == "branches")
            if one.route == "branches":
                assert one.ttft_s == one.total_s  # it is shown when it has been judged, with all of the batch
            else:
                assert one.ttft_s > max(taken.ttft_s for taken in found if taken.route == "branches")
                assert one.prompt_tokens == cached.prompt_tokens + text.prompt_tokens
                assert one.cached_tokens == cached.cached_tokens

    def test_one_question_gives_one_result(self, talking: ps.ParallelSynthesis, branches: ps.Branches) -> None:
        for threshold in (0.0, 1e-9, 1.0):
            assert isinstance(gated(talking, threshold).synthesize(QUESTIONS[0], branches[0], 3), ps.SynthesisResult)

    def test_no_branches_no_gate(self, talking: ps.ParallelSynthesis) -> None:
        assert gated(talking, 1.0).synthesize(QUESTIONS[0], None, 3).route is None


def test_a_stream_shows_what_is_answered_and_nothing_else(
    talking: ps.ParallelSynthesis, branches: ps.Branches, from_branches: list[ps.SynthesisResult]
) -> None:
    pieces: list[StreamedToken] = []
    synth = gated(talking, between(from_branches))
    found = synth.synthesize(QUESTIONS, branches, 6, on_token=pieces.append)
    for number, result in enumerate(found):
        assert "".join(piece for piece in pieces if piece.question == number) == result.text


def test_a_worker_that_wrote_nothing_is_read_by_both_routes(talking: ps.ParallelSynthesis) -> None:
    end = sorted(talking.model.stop_ids)[:1]
    branches = talking.encode([[end, "Oslo has a harbour."]])
    assert branches.texts[0][0].strip() == ""
    right = talking.synthesize_text(QUESTIONS[:1], [["(no text)", "Oslo has a harbour."]], 4)
    for threshold in (0.9999999, 1.0):
        (found,) = gated(talking, threshold).synthesize(QUESTIONS[:1], branches, 4)
        assert (found.route, found.token_ids) == ("text", right[0].token_ids)


def test_where_texts_do_not_fit_the_caches_answer_stays(talking: ps.ParallelSynthesis) -> None:
    """Texts need room for their sum, branches for the longest one."""
    window = talking.model.config.max_positions
    long = ["x" * (window // 2)] * 3
    branches = ps.Branches.batch([talking.encode(long), talking.encode(TEXTS[1])])
    right = talking.synthesize(QUESTIONS[:2], branches, 4)
    first, second = gated(talking, 0.9999999).synthesize(QUESTIONS[:2], branches, 4)
    assert (first.route, first.token_ids) == ("branches", right[0].token_ids)
    assert second.route == "text"
    with pytest.raises(ContextLengthError):
        gated(talking, 1.0).synthesize(QUESTIONS[:2], branches, 4)


def test_a_gate_costs_no_second_sink(talking: ps.ParallelSynthesis, monkeypatch: pytest.MonkeyPatch) -> None:
    from psynth_jax.convert.adapter_directory import Adapter
    from psynth_jax.synthesis import sink_branches

    counted: list[int] = []
    encode = sink_branches.encode_texts
    monkeypatch.setattr(sink_branches, "encode_texts", lambda *args: counted.append(1) or encode(*args))
    synth = ps.ParallelSynthesis(talking.model, Adapter(None, None, sink=(1, 2)), gate=1e-9)
    branches = synth.encode([["Oslo."]])
    for _ in range(3):
        synth.synthesize(QUESTIONS[:1], branches, 2)
    assert len(counted) == 1


class TestGate:
    def test_belongs_to_a_model_and_an_adapter(self, talking: ps.ParallelSynthesis) -> None:
        model, digest = talking.model, talking.adapter.digest
        assert ps.ParallelSynthesis(model, gate=Gate(0.5, "margin", model.fingerprint, digest)).gate is not None
        for gate, what in ((Gate(0.5, model="f" * 64), "model"), (Gate(0.5, adapter="a" * 64), "adapter")):
            with pytest.raises(ModelMismatchError, match=f"the gate was chosen for another {what}"):
                ps.ParallelSynthesis(model, gate=gate)

    @pytest.mark.parametrize("gate", ["0.5", {"threshold": 0.5}, [0.5]])
    def test_is_a_gate_or_a_number(self, talking: ps.ParallelSynthesis, gate: Any) -> None:
        with pytest.raises(InputError, match="threshold is"):
            ps.ParallelSynthesis(talking.model, gate=gate)
        assert ps.ParallelSynthesis(talking.model, gate=np.float32(0.5)).gate == Gate(0.5)  # type: ignore[arg-type]

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, "0.5", True, None])
    def test_a_threshold_is_from_0_to_1(self, threshold: Any) -> None:
        with pytest.raises(InputError, match=r"threshold is .*; it must be a number from 0 to 1"):
            Gate(threshold)

    def test_a_measure_is_one_of_two(self) -> None:
        with pytest.raises(InputError, match="measure is 'surprise'; it must be likelihood or margin"):
            Gate(0.5, "surprise")  # type: ignore[arg-type]

    def test_measures_what_it_says(self) -> None:
        sure = Confidence(likelihood=0.9, margin=0.2)
        assert Gate(0.5).accepts(sure)
        assert not Gate(0.5, "margin").accepts(sure)
        assert not Gate(0.9).accepts(sure)
        assert Gate(0.0, "margin").accepts(Confidence(0.0, 0.0))
        assert not Gate(1.0).accepts(Confidence(1.0, 1.0))

    def test_is_read_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "gate.json"
        path.write_text(json.dumps({"threshold": 0.25, "measure": "margin", "curve": []}))
        assert Gate.load(path) == Gate(0.25, "margin")

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"threshold": 0.5}', "[" * 100_000])
    def test_a_file_without_one(self, content: str, tmp_path: Path) -> None:
        path = tmp_path / "gate.json"
        path.write_text(content)
        with pytest.raises(InputError, match="holds no gate"):
            Gate.load(path)


@pytest.mark.parametrize("recompute", [-1, True, 1.5, "4"])
def test_recompute_is_a_number_of_tokens(talking: ps.ParallelSynthesis, branches: ps.Branches, recompute: Any) -> None:
    with pytest.raises(InputError, match=r"recompute is .*; it must be a number of tokens, 0 or more"):
        talking.synthesize(QUESTIONS, branches, 3, recompute=recompute)


def test_recompute_needs_branches(talking: ps.ParallelSynthesis) -> None:
    with pytest.raises(InputError, match="recompute is 4, and there are no branches"):
        talking.synthesize(QUESTIONS, None, 3, recompute=4)
