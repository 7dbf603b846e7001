"""Methods on a tiny model that talks: each is what its name says, and wrong branches are wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeAlias

import pytest

import psynth_jax as ps
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.data.record import BranchText, Record
from psynth_jax.errors import DataError, InputError
from psynth_jax.evaluation.methods import METHODS, Synthesizers, choose, method
from psynth_jax.evaluation.tasks import QATask, Question
from psynth_jax.evaluation.wrong_branches import with_wrong_branches
from psynth_jax.mapper import Mapper
from psynth_jax.prompts import baseline_messages, synthesis_messages
from psynth_jax.synthesis.gate import Gate
from psynth_jax.tokenizer import Tokenizer
from tests.evaluation.conftest import record
from tests.tiny import random_lora, random_mapper, talking_model

Answers: TypeAlias = dict[str, list[ps.SynthesisResult]]

OPTIONS = {"max_new_tokens": 6, "temperature": 0.0, "seed": 0}
ALL = {"adapter", "text_adapter", "gated"}


def asked(records: list[Record]) -> list[Question]:
    return [Question(each.id, each.task, each.query, each.branches, each.answers) for each in records]


def tokenizer(synth: ps.ParallelSynthesis) -> Tokenizer:
    assert synth.model.tokenizer is not None
    return synth.model.tokenizer


@pytest.fixture(scope="module")
def synthesizers() -> Synthesizers:
    model = talking_model()
    adapter = Adapter(random_lora(model.config, 1), Mapper.from_arrays(random_mapper(1)))
    return Synthesizers.over(model, adapter, Adapter(random_lora(model.config, 2), None), gate=Gate(1.0))


@pytest.fixture(scope="module")
def answers(synthesizers: Synthesizers) -> Answers:
    """What every method that asks a model answers to three questions."""
    questions = asked([record(number, city) for number, city in enumerate(("Oslo", "Rome", "Bern"))])
    found = {}
    for name in (*METHODS, "recompute:0", "recompute:5"):
        way = method(name)
        if way.answer is None:
            continue
        given = with_wrong_branches(questions) if way.of_another else questions
        found[name] = way.answer(synthesizers.of(way), given, OPTIONS)
    return found


class TestAnswers:
    """Against the same thing asked by hand, as token ids."""

    questions = asked([record(number, city) for number, city in enumerate(("Oslo", "Rome", "Bern"))])

    def check(self, results: list[ps.SynthesisResult], expected: list[ps.SynthesisResult]) -> None:
        for result, right in zip(results, expected, strict=True):
            assert result.token_ids == right.token_ids
            assert (result.prompt_tokens, result.cached_tokens) == (right.prompt_tokens, right.cached_tokens)

    def pasted(self, synth: ps.ParallelSynthesis) -> list[list[int]]:
        return [tokenizer(synth).chat(baseline_messages(q.query, q.texts)) for q in self.questions]

    def prompts(self, synth: ps.ParallelSynthesis) -> list[list[int]]:
        return [tokenizer(synth).chat(synthesis_messages(q.query)) for q in self.questions]

    def encoded(self, synth: ps.ParallelSynthesis, questions: list[Question]) -> ps.Branches:
        ids = tokenizer(synth).encode
        return synth.encode(
            [[ids(x) for x in q.texts] for q in questions], [[ids(x) for x in q.prefixes] for q in questions]
        )

    def test_text(self, synthesizers: Synthesizers, answers: Answers) -> None:
        self.check(answers["text"], synthesizers.base.synthesize(self.pasted(synthesizers.base), None, 6))
        assert all(result.cached_tokens == 0 for result in answers["text"])

    def test_text_lora(self, synthesizers: Synthesizers, answers: Answers) -> None:
        synth = synthesizers.of(METHODS["text-lora"])
        assert synth is synthesizers.text_adapter
        self.check(answers["text-lora"], synth.synthesize(self.pasted(synth), None, 6))
        for plain, tuned in zip(answers["text"], answers["text-lora"], strict=True):
            assert plain.prompt_tokens == tuned.prompt_tokens and plain.token_ids != tuned.token_ids

    @pytest.mark.parametrize("name", ["branches", "identity"])
    def test_branches(self, name: str, synthesizers: Synthesizers, answers: Answers) -> None:
        synth = synthesizers.of(METHODS[name])
        self.check(answers[name], synth.synthesize(self.prompts(synth), self.encoded(synth, self.questions), 6))

    def test_identity_has_no_adapter(self, synthesizers: Synthesizers, answers: Answers) -> None:
        assert synthesizers.of(METHODS["identity"]).adapter == Adapter(None, None)
        assert answers["identity"][0].token_ids != answers["branches"][0].token_ids

    def test_prefixes_are_prefilled_and_not_read(self, answers: Answers) -> None:
        texts = [sum(len(text) for text in question.texts) for question in self.questions]
        assert [result.cached_tokens for result in answers["branches"]] == texts  # a token is a byte

    def test_question_has_the_prompt_of_branches(self, synthesizers: Synthesizers, answers: Answers) -> None:
        synth = synthesizers.of(METHODS["question"])
        assert synth is synthesizers.adapter
        self.check(answers["question"], synth.synthesize(self.prompts(synth), None, 6))
        for alone, read in zip(answers["question"], answers["branches"], strict=True):
            assert alone.prompt_tokens == read.prompt_tokens and alone.token_ids != read.token_ids

    def test_wrong_branches_are_those_of_the_next(self, synthesizers: Synthesizers, answers: Answers) -> None:
        synth = synthesizers.of(METHODS["wrong-branches"])
        assert synth is synthesizers.adapter
        others = self.encoded(synth, [*self.questions[1:], self.questions[0]])
        self.check(answers["wrong-branches"], synth.synthesize(self.prompts(synth), others, 6))
        for wrong, right in zip(answers["wrong-branches"], answers["branches"], strict=True):
            assert wrong.token_ids != right.token_ids

    def test_recompute_of_nothing_is_branches(self, answers: Answers) -> None:
        for one, other in zip(answers["recompute:0"], answers["branches"], strict=True):
            assert one.token_ids == other.token_ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)

    def test_recompute_prefills_the_first_tokens(self, answers: Answers) -> None:
        for one, other in zip(answers["recompute:5"], answers["branches"], strict=True):
            assert one.prompt_tokens == other.prompt_tokens + 10  # two branches
            assert one.cached_tokens == other.cached_tokens - 10
            assert one.logprobs != other.logprobs

    def test_a_gate_of_1_asks_the_texts(self, answers: Answers) -> None:
        for one, other in zip(answers["gated"], answers["text"], strict=True):
            assert (one.token_ids, one.route) == (other.token_ids, "text")


class TestWrongBranches:
    def test_never_of_a_question_with_the_same_answer(self, records: list[Record]) -> None:
        """Oslo, Rome, Oslo, Bern, Rome: the last goes on at the start."""
        questions = asked(records)
        given = with_wrong_branches(questions)
        donors = {question.branches: question for question in questions}
        assert [donors[each.branches].id for each in given] == ["q1", "q2", "q3", "q4", "q0"]
        questions = [questions[0], questions[2], questions[1], questions[4], questions[3]]  # Oslo Oslo Rome Rome Bern
        given = with_wrong_branches(questions)
        assert [donors[each.branches].id for each in given] == ["q1", "q1", "q3", "q3", "q0"]
        for own, other in zip(questions, given, strict=True):
            assert (own.id, own.query, own.answers) == (other.id, other.query, other.answers)
            assert not own.shares_an_answer(donors[other.branches])

    def test_answers_are_the_same_however_they_are_written(self) -> None:
        first, second = record(0, "Oslo"), dataclasses.replace(record(1, "Rome"), answers=("the OSLO!",))
        with pytest.raises(DataError, match="no other question has other answers and other branches than 'q0'"):
            with_wrong_branches(asked([first, second]))

    def test_never_branches_that_are_its_own(self) -> None:
        """Two questions about one text: the text of the other answers this one, too."""
        text = BranchText("Oslo is in Norway.")
        first, second = (record(n, city, branches=[text]) for n, city in enumerate(("Oslo", "Norway")))
        third = record(2, "Rome")
        given = with_wrong_branches(asked([first, second, third]))
        assert [each.branches for each in given] == [third.branches, third.branches, first.branches]


class TestChoice:
    def test_comes_in_one_order(self) -> None:
        assert [method.name for method in choose(["identity", "text"], set())] == ["text", "identity"]
        assert [method.name for method in choose(list(METHODS), ALL)] == list(METHODS)
        names = [method.name for method in choose(["identity", "recompute:16", "recompute:04", "branches"], ALL)]
        assert names == ["branches", "recompute:4", "recompute:16", "identity"]

    @pytest.mark.parametrize(
        ("names", "given", "said"),
        [
            (["text", "caches"], ALL, "no method 'caches': choose from text, text-lora, branches"),
            ([], ALL, "no method is given"),
            (["text", "text"], ALL, "named twice"),
            (["recompute:4", "recompute:04"], ALL, "named twice"),
            (["recompute:x"], ALL, "behind the colon goes a number of tokens, as in recompute:16"),
            (["gated"], {"adapter"}, r"gated needs an adapter and a gate \(--gate\)"),
            (["text", "branches", "question"], {"text_adapter"}, r"branches, question needs an adapter \(--adapter\)"),
            (["text-lora"], {"adapter"}, r"text-lora needs a LoRA .* \(--text-adapter\)"),
        ],
    )
    def test_refuses(self, names: list[str], given: set, said: str) -> None:
        with pytest.raises(InputError, match=said):
            choose(names, given)

    def test_an_adapter_that_is_not_given(self) -> None:
        with pytest.raises(InputError, match="question needs an adapter"):
            Synthesizers.over(talking_model()).of(METHODS["question"])

    def test_a_text_adapter_without_a_lora(self) -> None:
        mapper = Mapper.from_arrays(random_mapper(1))
        with pytest.raises(InputError, match="has no LoRA"):
            Synthesizers.over(talking_model(), None, Adapter(None, mapper))


def test_questions_of_a_file_are_those_of_its_records(data: Path, records: list[Record]) -> None:
    assert list(QATask(data).questions()) == asked(records)
