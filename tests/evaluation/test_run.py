"""Runs: rows as they come, what is resumed and what is refused, the summary."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.data.record import BranchText, Record, write_records
from psynth_jax.errors import ContextLengthError, DataError, InputError, NotFiniteError, UserError
from psynth_jax.evaluation.methods import METHODS, Method, Synthesizers
from psynth_jax.evaluation.rows import RowFile
from psynth_jax.evaluation.run import Plan, evaluate
from psynth_jax.evaluation.tasks import QATask, Question
from psynth_jax.nn.decoder import Decoder
from psynth_jax.synthesis.pipeline import ParallelSynthesis, SynthesisResult
from tests.evaluation.conftest import record
from tests.tiny import random_lora, talking_model


@dataclasses.dataclass
class Scripted:
    """A method that runs no model: right about Rome, and out of room for branches with an x in their text."""

    name: str = "text"
    weights: str = "base"
    dies_at: str = ""
    asked: list[list[str]] = dataclasses.field(default_factory=list)

    @property
    def method(self) -> Method:
        return Method(self.name, self.weights, self.answer)  # type: ignore[arg-type]

    def answer(
        self, synth: ParallelSynthesis, questions: Sequence[Question], options: Mapping[str, Any]
    ) -> list[SynthesisResult]:
        self.asked.append([question.id for question in questions])
        if self.dies_at in self.asked[-1]:
            raise KeyboardInterrupt
        if any("xxxx" in text for question in questions for text in question.texts):
            raise ContextLengthError("the question does not fit")
        answers = ["Rome" if "Rome" in question.texts[0] else "a city" for question in questions]
        return [
            SynthesisResult(text, [1, 2], float(question.id[1:]), 10, 20, 5.0, "length" if text == "a city" else "stop")
            for question, text in zip(questions, answers, strict=True)
        ]


@pytest.fixture(scope="module")
def synthesizers() -> Synthesizers:
    model = talking_model()
    return Synthesizers.over(model, Adapter(random_lora(model.config, 1), None))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def plan(data: Path, *methods: Scripted, **changed: Any) -> Plan:
    return Plan.of(QATask(data), [each.method for each in methods], **{"batch": 2, **changed})


class TestRows:
    def test_hold_what_was_answered(self, data: Path, folder: Path, synthesizers: Synthesizers) -> None:
        seen: list[Any] = []
        evaluate(plan(data, Scripted()), synthesizers, folder, seen.append)
        rows = lines(folder)
        assert rows == seen and [row["id"] for row in rows] == ["q0", "q1", "q2", "q3", "q4"]
        assert rows[1] == {
            "id": "q1",
            "task": "cities",
            "method": "text",
            "prediction": "Rome",
            "answers": ["Rome", "Rome city"],
            "em": 1.0,
            "f1": 1.0,
            "key": "rome",
            "written": "Rome",
            "batch": 2,
            "ttft_s": 1.0,
            "total_s": 0.0,
            "prompt_tokens": 10,
            "cached_tokens": 20,
            "generated_tokens": 2,
            "finish_reason": "stop",
        }
        assert (rows[0]["prediction"], rows[0]["em"], rows[0]["f1"]) == ("a city", 0, pytest.approx(2 / 3))

    def test_batches_are_of_similar_size(self, tmp_path: Path, folder: Path, synthesizers: Synthesizers) -> None:
        sizes = (500, 3, 40, 501, 4)
        records = [record(n, "Oslo", branches=[BranchText("y" * size)]) for n, size in enumerate(sizes)]
        write_records(tmp_path / "a.jsonl", records)
        scripted = Scripted()
        evaluate(plan(tmp_path / "a.jsonl", scripted), synthesizers, folder)
        assert scripted.asked == [["q1", "q4"], ["q2", "q0"], ["q3"]]

    def test_are_limited(self, data: Path, folder: Path, synthesizers: Synthesizers) -> None:
        assert evaluate(plan(data, Scripted(), limit=2), synthesizers, folder)["questions"] == 2
        assert [row["id"] for row in lines(folder)] == ["q0", "q1"]


class TestDoesNotFit:
    """The last question's branches are too long, alone or with others."""

    def test_is_counted_and_scores_nothing(self, data: Path, folder: Path, synthesizers: Synthesizers) -> None:
        scripted = Scripted()
        summary = evaluate(plan(data, scripted, batch=5), synthesizers, folder)
        assert scripted.asked == [
            ["q0", "q1", "q2", "q3", "q4"],
            ["q0", "q1"],
            ["q2", "q3", "q4"],
            ["q2"],
            ["q3", "q4"],
            ["q3"],
            ["q4"],
        ]
        last = lines(folder)[-1]
        assert (last["id"], last["finish_reason"], last["em"], last["f1"]) == ("q4", "does_not_fit", 0, 0)
        assert (last["ttft_s"], last["prompt_tokens"], last["error"]) == (None, None, "the question does not fit")
        found = summary["methods"]["text"]
        assert (found["n"], found["does_not_fit"], found["cut_off"]) == (5, 1, 3)
        assert found["em"]["mean"] == 1 / 5 and found["ttft_s"] == 1.5  # the median of 0, 1, 2, 3
        assert [row["batch"] for row in lines(folder)] == [2, 2, 1, 1, 1]

    def test_at_all(self, tmp_path: Path, folder: Path, synthesizers: Synthesizers) -> None:
        write_records(tmp_path / "a.jsonl", [record(7, "Rome")])
        found = evaluate(plan(tmp_path / "a.jsonl", Scripted()), synthesizers, folder)["methods"]["text"]
        assert (found["n"], found["does_not_fit"], found["ttft_s"], found["prompt_tokens"]) == (1, 1, None, None)


class TestResumed:
    def test_asks_what_is_missing(self, data: Path, folder: Path, synthesizers: Synthesizers) -> None:
        with pytest.raises(KeyboardInterrupt):
            evaluate(plan(data, Scripted(dies_at="q2")), synthesizers, folder)
        assert [row["id"] for row in lines(folder)] == ["q0", "q1"] and not (folder / "summary.json").exists()
        scripted, seen = Scripted(), []
        resumed = evaluate(plan(data, scripted), synthesizers, folder, seen.append)
        assert scripted.asked == [["q2", "q3"], ["q4"]]
        assert [row["id"] for row in seen] == ["q0", "q1", "q2", "q3", "q4"]
        assert resumed == evaluate(plan(data, Scripted()), synthesizers, folder.with_name("straight"))

    @pytest.mark.parametrize("cut", [1, 30])  # the end of the line, or its second half too
    def test_after_a_torn_line(self, data: Path, folder: Path, synthesizers: Synthesizers, cut: int) -> None:
        evaluate(plan(data, Scripted()), synthesizers, folder)
        whole = (folder / "rows.jsonl").read_bytes()
        (folder / "rows.jsonl").write_bytes(whole[:-cut])
        scripted = Scripted()
        evaluate(plan(data, scripted), synthesizers, folder)
        assert scripted.asked == [["q4"]]
        assert (folder / "rows.jsonl").read_bytes() == whole

    def test_asks_nothing_twice(self, data: Path, folder: Path, synthesizers: Synthesizers) -> None:
        first = evaluate(plan(data, Scripted()), synthesizers, folder)
        scripted = Scripted()
        assert evaluate(plan(data, scripted), synthesizers, folder) == first
        assert scripted.asked == []

    def test_takes_more_questions_and_more_methods(self, data: Path, folder: Path, synthesizers: Synthesizers) -> None:
        evaluate(plan(data, Scripted(), limit=2), synthesizers, folder)
        more, other = Scripted(), Scripted("branches", "adapter")
        summary = evaluate(plan(data, more, other), synthesizers, folder)
        assert more.asked == [["q2", "q3"], ["q4"]] and len(other.asked) == 3
        again = evaluate(plan(data, Scripted()), synthesizers, folder)
        assert list(again["methods"]) == list(summary["methods"]) == ["text", "branches"]
        assert again["adapter"] == summary["adapter"] is not None  # that of the rows, though nothing asked for it now

    def test_summary_is_of_what_is_complete(self, data: Path, folder: Path, synthesizers: Synthesizers) -> None:
        evaluate(plan(data, Scripted("branches", "adapter"), limit=2), synthesizers, folder)
        assert list(evaluate(plan(data, Scripted()), synthesizers, folder)["methods"]) == ["text"]


class TestRefuses:
    @pytest.fixture
    def rows(self, data: Path, folder: Path, synthesizers: Synthesizers) -> bytes:
        """Rows of an evaluation that is done."""
        evaluate(plan(data, Scripted(), Scripted("branches", "adapter")), synthesizers, folder)
        return (folder / "rows.jsonl").read_bytes()

    def test_answers_that_were_taken_otherwise(
        self, data: Path, folder: Path, synthesizers: Synthesizers, rows: bytes
    ) -> None:
        # Earlier versions scored all of an answer, and did not say so.
        settings = json.loads((folder / "settings.json").read_text())
        del settings["final_answer"]
        (folder / "settings.json").write_text(json.dumps(settings))
        other = Plan.of(QATask(data, final_answer=True), [Scripted().method], batch=2)
        with pytest.raises(InputError, match="final_answer is True, it was False"):
            evaluate(other, synthesizers, folder)
        evaluate(plan(data, Scripted(), Scripted("branches", "adapter")), synthesizers, folder)
        assert (folder / "rows.jsonl").read_bytes() == rows

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"max_new_tokens": 5}, "max_new_tokens is 5, it was 32"),
            ({"batch": 3}, "batch is 3, it was 2"),
            ({"temperature": 0.5}, "temperature is 0.5, it was 0.0"),
        ],
    )
    def test_other_settings(
        self, data: Path, folder: Path, synthesizers: Synthesizers, rows: bytes, changed: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(InputError, match=f"has rows of another evaluation: {said}; choose another folder"):
            evaluate(plan(data, Scripted(), **changed), synthesizers, folder)
        assert (folder / "rows.jsonl").read_bytes() == rows

    def test_other_data(
        self, data: Path, folder: Path, synthesizers: Synthesizers, rows: bytes, records: list[Record]
    ) -> None:
        write_records(data, records[:-1])
        with pytest.raises(InputError, match=r"data is \w{12}…, it was \w{12}…"):
            evaluate(plan(data, Scripted()), synthesizers, folder)

    def test_another_model_and_another_adapter(
        self, data: Path, folder: Path, synthesizers: Synthesizers, rows: bytes
    ) -> None:
        with pytest.raises(InputError, match="model is "):
            evaluate(plan(data, Scripted()), Synthesizers.over(talking_model(1)), folder)
        model = synthesizers.base.model
        other = Synthesizers.over(model, Adapter(random_lora(model.config, 2), None))
        with pytest.raises(InputError, match="adapter is "):
            evaluate(plan(data, Scripted("question", "adapter")), other, folder)
        evaluate(plan(data, Scripted()), other, folder)  # which does not use it

    def test_damage(self, data: Path, folder: Path, synthesizers: Synthesizers, rows: bytes) -> None:
        (folder / "rows.jsonl").write_bytes(b'{"method": "te\n' + rows)
        with pytest.raises(DataError, match=r"rows\.jsonl:1: not JSON"):
            evaluate(plan(data, Scripted()), synthesizers, folder)
        (folder / "rows.jsonl").write_bytes(rows + b'{"method": "text"}\n')
        with pytest.raises(DataError, match=r"rows\.jsonl:11: not a row"):
            evaluate(plan(data, Scripted()), synthesizers, folder)

    def test_a_folder_of_something_else(self, data: Path, synthesizers: Synthesizers) -> None:
        with pytest.raises(InputError, match=r"not the folder of an evaluation: it has files, but no settings\.json"):
            evaluate(plan(data, Scripted()), synthesizers, data.parent)
        with pytest.raises(InputError, match="cannot make the folder"):
            evaluate(plan(data, Scripted()), synthesizers, data)
        assert [path.name for path in data.parent.iterdir()] == [data.name]

    def test_rows_of_an_earlier_version_are_continued(self, data: Path, folder: Path, synthesizers: Synthesizers) -> None:
        """Its settings note the same model under its old digest; of another model they are refused."""
        evaluate(plan(data, Scripted(), limit=2), synthesizers, folder)
        file = folder / "settings.json"
        settings, model = json.loads(file.read_text()), synthesizers.base.model
        file.write_text(json.dumps({**settings, "model": min(model.identity.earlier)}))
        evaluate(plan(data, Scripted(), limit=2), synthesizers, folder)
        assert json.loads(file.read_text())["model"] == model.fingerprint
        file.write_text(json.dumps({**settings, "model": "0" * 64}))
        with pytest.raises(InputError, match="has rows of another evaluation: model is "):
            evaluate(plan(data, Scripted(), limit=2), synthesizers, folder)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"id": ["q0"]}, r"its id is \['q0'\]"),
            ({"method": None}, "its method is None"),
            ({"f1": float("nan")}, "its f1 is None"),
            ({"f1": "1.0"}, r"its f1 is '1\.0'"),
            ({"f1": 3}, "its f1 is 3"),
            ({"em": True}, "its em is True"),
            ({"ttft_s": "soon"}, "its ttft_s is 'soon'"),
            ({"prompt_tokens": -1}, "its prompt_tokens is -1"),
            ({"generated_tokens": None}, "it has no time or no tokens, and does not say that it did not fit"),
        ],
    )
    def test_a_row_with_wrong_values(
        self, data: Path, folder: Path, synthesizers: Synthesizers, change: dict[str, Any], said: str
    ) -> None:
        evaluate(plan(data, Scripted(), limit=2), synthesizers, folder)
        first, *others = lines(folder)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (first | change, *others)))
        with pytest.raises(DataError, match=rf"rows\.jsonl:1: not a row of an evaluation: {said}; take the line out"):
            evaluate(plan(data, Scripted()), synthesizers, folder)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
        assert evaluate(plan(data, Scripted()), synthesizers, folder)["questions"] == 5

    @pytest.mark.parametrize("name", ["rows.jsonl", "settings.json", "summary.json"])
    def test_a_fifo_is_refused_and_not_waited_for(
        self, data: Path, folder: Path, synthesizers: Synthesizers, name: str
    ) -> None:
        evaluate(plan(data, Scripted()), synthesizers, folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=rf"{name} is not a regular file"):
            evaluate(plan(data, Scripted()), synthesizers, folder)

    @pytest.mark.parametrize(
        "text", ["[" * 100_000, '{"data": ' + "9" * 5000 + "}", '{"data": [' + "[" * 90 + "]" * 91 + "}", "\xff"]
    )
    def test_damaged_settings(self, data: Path, folder: Path, synthesizers: Synthesizers, text: str) -> None:
        folder.mkdir()
        (folder / "settings.json").write_text(text, encoding="latin-1")
        (folder / "rows.jsonl").write_text("{}\n")  # there is something to lose
        with pytest.raises(UserError, match=r"settings\.json|another evaluation") as raised:
            evaluate(plan(data, Scripted()), synthesizers, folder)
        assert len(str(raised.value)) < 1000

    @pytest.mark.parametrize("name", ["rows.jsonl", "summary.json"])
    def test_files_that_cannot_be_written(self, data: Path, folder: Path, synthesizers: Synthesizers, name: str) -> None:
        evaluate(plan(data, Scripted(), limit=1), synthesizers, folder)
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(UserError, match=name):
            evaluate(plan(data, Scripted()), synthesizers, folder)

    def test_a_full_disk(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("there is no /dev/full to write to")
        file = RowFile(folder, {"data": "x"})
        with file.open(), Path("/dev/full").open("w") as full:
            monkeypatch.setattr(file._lines, "_file", full)
            with pytest.raises(InputError, match=r"cannot write .*rows\.jsonl: No space left on device"):
                file.append({"method": "text", "task": "cities", "id": "q0"})
            with pytest.raises(OSError, match="No space left"):
                full.close()
        assert file.rows == {}

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"limit": 0}, "limit is 0"),
            ({"batch": 0}, "batch is 0"),
            ({"max_new_tokens": 0}, "max_new_tokens"),
            ({"seed": -1}, "seed"),
        ],
    )
    def test_numbers_out_of_range(self, data: Path, changed: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            plan(data, Scripted(), **changed)

    def test_wrong_branches_where_there_are_none(self, tmp_path: Path) -> None:
        write_records(tmp_path / "a.jsonl", [record(0, "Rome"), record(1, "Rome")])
        with pytest.raises(DataError, match="no other question"):
            Plan.of(QATask(tmp_path / "a.jsonl"), [METHODS["wrong-branches"]])


class TestSummary:
    def test_says_what_was_run(self, data: Path, folder: Path, synthesizers: Synthesizers) -> None:
        summary = evaluate(plan(data, Scripted(), Scripted("branches", "adapter"), seed=3), synthesizers, folder)
        assert json.loads((folder / "summary.json").read_text()) == summary
        adapter = synthesizers.of(METHODS["branches"]).adapter
        expected = {
            "task": "cities",
            "questions": 5,
            "seed": 3,
            "batch": 2,
            "max_new_tokens": 32,
            "dtype": "float32",
            "model": synthesizers.base.model.fingerprint,
            "adapter": adapter.digest,
            "text_adapter": None,
        }
        assert {name: summary[name] for name in expected} == expected
        assert len(summary["data"]) == 64

    def test_means_and_comparisons(self, data: Path, folder: Path, synthesizers: Synthesizers) -> None:
        summary = evaluate(plan(data, Scripted(), Scripted("branches", "adapter"), limit=4), synthesizers, folder)
        found = summary["methods"]["branches"]
        assert found["em"]["mean"] == 1 / 4 and 0 <= found["em"]["low"] < 1 / 4 < found["em"]["high"]
        assert found["f1"]["mean"] == pytest.approx((1 + 3 * 2 / 3) / 4)
        assert (found["ttft_s"], found["prompt_tokens"], found["generated_tokens"]) == (1.5, 10, 2)
        em, f1 = summary["comparisons"]
        assert (em["against"], em["score"], f1["score"]) == ("text", "em", "f1")
        assert em["ratio"] is None  # one right answer is in 68 of 100 draws only
        assert f1["ratio"] == {"value": 1, "low": 1, "high": 1}
        assert f1["difference"] == {"value": 0, "low": 0, "high": 0}
        assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())
        assert "by_task" not in summary

    def test_of_several_tasks(self, tmp_path: Path, folder: Path, synthesizers: Synthesizers) -> None:
        write_records(
            tmp_path / "a.jsonl", [record(0, "Rome"), record(0, "Bern", task="towns"), record(1, "Bern", task="towns")]
        )
        summary = evaluate(plan(tmp_path / "a.jsonl", Scripted()), synthesizers, folder)
        assert summary["by_task"]["cities"]["text"]["em"]["mean"] == 1
        assert (summary["by_task"]["towns"]["text"]["n"], summary["by_task"]["towns"]["text"]["em"]["mean"]) == (2, 0)


def test_digest_of_an_adapter_is_of_all_that_counts(synthesizers: Synthesizers) -> None:
    config = synthesizers.base.model.config
    lora, same, other = (random_lora(config, seed) for seed in (1, 1, 2))
    assert Adapter(lora, None).digest == Adapter(same, None).digest
    different = [Adapter(lora, None), Adapter(other, None), Adapter(None, None), Adapter(lora, None, 50)]
    different += [Adapter(lora, None, sink=sink) for sink in ((1,), (2,))]
    assert len({adapter.digest for adapter in different}) == len(different)


@pytest.mark.parametrize("name", ["text", "branches", "question"])
def test_a_model_whose_numbers_are_not_finite_ends_the_run(data: Path, folder: Path, name: str) -> None:
    """An F1 of 0 would be a result."""
    model = talking_model()
    parameters = dict(model.decoder.parameters())
    parameters["layers.down"] = parameters["layers.down"].at[0, 1, 2].set(math.nan)
    broken = dataclasses.replace(model, decoder=Decoder(model.config, parameters))
    with pytest.raises(NotFiniteError, match="not finite"):
        evaluate(Plan.of(QATask(data), [METHODS[name]], batch=2), Synthesizers.over(broken, Adapter(None, None)), folder)
    assert not (folder / "summary.json").exists()
