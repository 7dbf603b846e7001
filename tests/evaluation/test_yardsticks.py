"""`vote` and `self`: what the branches elect, and what the model writes for itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import psynth_jax as ps
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.data.record import BranchText, Record, write_records
from psynth_jax.errors import DataError, InputError
from psynth_jax.evaluation import second_look
from psynth_jax.evaluation.methods import METHODS, Synthesizers, choose
from psynth_jax.evaluation.rows import NO_MODEL
from psynth_jax.evaluation.run import Plan, evaluate
from psynth_jax.evaluation.summary import summarise
from psynth_jax.evaluation.tasks import QATask, Question, Task
from psynth_jax.evaluation.voting import elected
from psynth_jax.mapper import Mapper
from psynth_jax.prompts import question_messages, synthesis_messages
from tests.evaluation.conftest import record
from tests.tiny import random_lora, random_mapper, talking_model

OPTIONS = {"max_new_tokens": 6, "temperature": 0.0, "seed": 0}


def question(*texts: str, number: int = 0) -> Question:
    branches = tuple(BranchText(text) for text in texts)
    return Question(f"q{number}", "cities", "Which city?", branches, ("Oslo",))


class Boxed(Task):
    """A task whose answers stand behind a colon, and whose numbers may have a sign."""

    name = "boxed"
    max_new_tokens = 4

    def questions(self) -> Sequence[Question]:
        return [question("x: 5", "y: -5", "z: -5")]

    def extract(self, written: str) -> str:
        _, colon, answer = written.rpartition(":")
        return answer.strip() if colon else ""

    def score(self, prediction: str, question: Question) -> Mapping[str, float]:
        return {"accuracy": float(prediction in question.answers)}


class Signed(Boxed):
    def normalise(self, prediction: str) -> str:
        return prediction


@pytest.fixture(scope="module")
def synthesizers() -> Synthesizers:
    model = talking_model()
    return Synthesizers.over(model, Adapter(random_lora(model.config, 1), Mapper.from_arrays(random_mapper(1))))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


class TestVote:
    @pytest.mark.parametrize(
        ("texts", "winner"),
        [
            (("Rome", "Oslo", "Oslo"), "Oslo"),
            (("Rome", "Oslo", "Oslo", "Rome"), "Rome"),  # two each: that of the first branch
            (("Bern", "Oslo", "Rome", "Oslo", "Rome"), "Oslo"),  # the first branch's answer is not among the most frequent
            (("Oslo", "Rome"), "Oslo"),
            (("Rome", "the OSLO!", "oslo", "Oslo."), "the OSLO!"),  # the first way of writing it
            (("Rome",), "Rome"),
        ],
    )
    def test_by_hand(self, texts: Sequence[str], winner: str, tmp_path: Path) -> None:
        assert elected(QATask(tmp_path / "none.jsonl"), question(*texts)) == winner

    @pytest.mark.parametrize(
        ("texts", "winner"),
        [
            (("Rome", "so: Oslo", "no idea", "also none"), "so: Oslo"),  # those without an answer elect nobody
            (("one: Rome", "two: Oslo", "three: Rome"), "one: Rome"),
            (("nothing", "nothing"), ""),
        ],
    )
    def test_of_what_a_task_takes_for_the_answer(self, texts: Sequence[str], winner: str) -> None:
        assert elected(Boxed(), question(*texts)) == winner

    def test_counts_as_equal_what_the_task_does(self) -> None:
        (asked,) = Boxed().questions()
        assert elected(Boxed(), asked) == "x: 5"  # without punctuation all three are 5
        assert elected(Signed(), asked) == "y: -5"

    def test_needs_no_adapter(self) -> None:
        assert [method.name for method in choose(["vote"], set())] == ["vote"]

    def test_rows(self, tmp_path: Path) -> None:
        texts = (("Oslo", "Rome", "the Oslo"), ("Rome", "Bern"), ("x" * 2000, "x" * 2000, "Oslo"))
        records = [
            Record(f"q{n}", "cities", "Which?", tuple(map(BranchText, each)), "Oslo", ("Oslo",))
            for n, each in enumerate(texts)
        ]
        write_records(tmp_path / "a.jsonl", records)
        plan = Plan.of(QATask(tmp_path / "a.jsonl"), [METHODS["vote"]], batch=2)
        summary = evaluate(plan, Synthesizers.over(talking_model()), tmp_path / "out")
        rows = {row["id"]: row for row in lines(tmp_path / "out")}
        assert [rows[f"q{n}"]["prediction"] for n in range(3)] == ["Oslo", "Rome", "x" * 2000]  # which fits no window
        assert [rows[f"q{n}"]["em"] for n in range(3)] == [1, 0, 0]
        expected = {"ttft_s": None, "prompt_tokens": 0, "cached_tokens": 0, "generated_tokens": 0, "finish_reason": NO_MODEL}
        assert all(row | expected == row and row["batch"] == 1 for row in rows.values())
        found = summary["methods"]["vote"]
        assert (found["n"], found["does_not_fit"], found["cut_off"], found["ttft_s"]) == (3, 0, 0, None)
        assert found["em"]["mean"] == pytest.approx(1 / 3) and found["prompt_tokens"] == 0

    def test_a_row_with_a_time_missing_is_damaged_elsewhere(self, data: Path, tmp_path: Path) -> None:
        synthesizers, folder = Synthesizers.over(talking_model()), tmp_path / "out"
        evaluate(Plan.of(QATask(data), [METHODS["vote"]]), synthesizers, folder)
        rows = (folder / "rows.jsonl").read_text()
        for change in (("no_model", "stop"), ('"prompt_tokens": 0', '"prompt_tokens": null')):
            (folder / "rows.jsonl").write_text(rows.replace(*change, 1))
            with pytest.raises(DataError, match=r"rows\.jsonl:1: .* it has no time or no tokens"):
                evaluate(Plan.of(QATask(data), [METHODS["vote"]]), synthesizers, folder)


class TestSelf:
    questions = tuple(question("Oslo", "Rome", number=number) for number in range(3))

    def answers(self, synthesizers: Synthesizers, questions: Sequence[Question], seed: int = 0) -> list[ps.SynthesisResult]:
        method = METHODS["self"]
        assert method.answer is not None
        return method.answer(synthesizers.of(method), questions, OPTIONS | {"seed": seed})

    @pytest.mark.slow
    def test_reads_one_branch_of_the_base(self, synthesizers: Synthesizers) -> None:
        synth = synthesizers.of(METHODS["self"])
        assert synth is synthesizers.adapter
        branches = second_look.own_branches(synth, self.questions, 6, 0)
        assert branches.count == [1, 1, 1]
        base = second_look.own_branches(synthesizers.base, self.questions, 6, 0)
        assert branches.token_ids == base.token_ids
        found = self.answers(synthesizers, self.questions)
        tokenizer = synth.model.tokenizer
        assert tokenizer is not None
        prompts = [tokenizer.chat(synthesis_messages(each.query)) for each in self.questions]
        expected = synth.synthesize(prompts, branches, 6)
        for result, right, lengths in zip(found, expected, branches.lengths, strict=True):
            assert (result.token_ids, result.cached_tokens) == (right.token_ids, lengths[0])
            assert result.prompt_tokens == right.prompt_tokens

    def test_sample_is_of_the_question_alone(self, synthesizers: Synthesizers) -> None:
        """At temperature 0.7, with a seed for each question."""
        base = synthesizers.base
        tokenizer = base.model.tokenizer
        assert tokenizer is not None
        prompt = tokenizer.chat(question_messages("Which city?"))
        seeds = [second_look._seed_of(each, 5) for each in self.questions]
        assert len(set(seeds)) == 3
        by_hand = base.work([prompt] * 3, 6, 0.7, seed=seeds)
        found = second_look.own_branches(base, self.questions, 6, 5)
        assert [group[0] for group in found.token_ids] == [list(ids) for ids in by_hand.token_ids]
        assert len({tuple(ids) for ids in by_hand.token_ids}) > 1

    def test_depends_on_the_seed_and_not_on_the_batch(self, synthesizers: Synthesizers) -> None:
        synth = synthesizers.base
        together = second_look.own_branches(synth, self.questions, 6, 0).token_ids
        assert second_look.own_branches(synth, self.questions, 6, 0).token_ids == together
        alone = [second_look.own_branches(synth, [each], 6, 0).token_ids[0] for each in self.questions[::-1]]
        assert alone[::-1] == together
        assert second_look.own_branches(synth, self.questions, 6, 1).token_ids != together

    def test_an_answer_that_ends_at_once_is_its_end(self, synthesizers: Synthesizers) -> None:
        model = synthesizers.base.model
        silent = dataclasses.replace(model, stop_ids=frozenset(range(model.config.vocab_size)))
        found = second_look.own_branches(ps.ParallelSynthesis(silent), self.questions, 6, 0)
        assert found.token_ids == [[[0]]] * 3

    def test_what_does_not_fit(self, synthesizers: Synthesizers, tmp_path: Path) -> None:
        """The window has 512 tokens, each a byte: branches are not read, a long question is."""
        asked = [
            dataclasses.replace(record(0, "Oslo"), query="?" * 600),
            record(1, "Rome", branches=[BranchText("x" * 600)]),
        ]
        write_records(tmp_path / "a.jsonl", asked)
        plan = Plan.of(QATask(tmp_path / "a.jsonl", 6), [METHODS["self"]], batch=2)
        found = evaluate(plan, synthesizers, tmp_path / "out")["methods"]["self"]
        assert (found["n"], found["does_not_fit"]) == (2, 1)
        reasons = {row["id"]: row["finish_reason"] for row in lines(tmp_path / "out")}
        assert reasons["q0"] == "does_not_fit" and reasons["q1"] in ("stop", "length")


class TestResumed:
    @pytest.mark.slow
    def test_with_both(self, data: Path, tmp_path: Path, synthesizers: Synthesizers) -> None:
        def run(folder: str, *methods: str, **changed: Any) -> dict[str, Any]:
            chosen = choose(methods, {"adapter"})
            return evaluate(Plan.of(QATask(data, 4), chosen, **changed), synthesizers, tmp_path / folder)

        first = run("out", "vote", limit=2)
        assert first["sampling_seed"] is None and list(first["methods"]) == ["vote"]
        both = run("out", "vote", "self", limit=2)
        assert both["methods"]["vote"] == first["methods"]["vote"] and both["sampling_seed"] == 0
        rows = (tmp_path / "out" / "rows.jsonl").read_bytes()
        (tmp_path / "out" / "rows.jsonl").write_bytes(rows[:-10])  # the last row is torn
        run("out", "vote", "self", limit=2)
        later = {(row["method"], row["id"]): row["written"] for row in lines(tmp_path / "out")}
        before = {(row["method"], row["id"]): row["written"] for row in map(json.loads, rows.splitlines())}
        assert later == before and len(later) == 4
        with pytest.raises(InputError, match="sampling_seed is 1, it was 0"):
            run("out", "self", seed=1)
        run("out", "vote", seed=1)  # which draws nothing


def test_a_summary_of_methods_with_and_without_time() -> None:
    def row(number: int, **changed: Any) -> dict[str, Any]:
        counts = {"ttft_s": 2.0 * number, "prompt_tokens": 4, "cached_tokens": 3, "generated_tokens": 2}
        return {"id": f"q{number}", "task": "t", "em": 1.0, "finish_reason": "stop", **counts, **changed}

    nothing = dict.fromkeys(("prompt_tokens", "cached_tokens", "generated_tokens"), 0)
    timeless = {"ttft_s": None, "finish_reason": NO_MODEL, "em": 0.0, **nothing}
    rows = {"branches": [row(n) for n in range(3)], "vote": [row(n, **timeless) for n in range(3)]}
    found = summarise(rows, ["em"], seed=0)
    assert found["methods"]["branches"]["ttft_s"] == 2.0 and found["methods"]["vote"]["ttft_s"] is None
    assert found["methods"]["vote"]["generated_tokens"] == 0 and found["methods"]["vote"]["does_not_fit"] == 0
    (compared,) = found["comparisons"]
    assert (compared["against"], compared["difference"]["value"], compared["ratio"]) == ("vote", 1.0, None)
