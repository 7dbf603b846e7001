"""Folders of evaluations: finished, running, in parts, of earlier versions, damaged, and of something else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.errors import DataError, InputError
from psynth_jax.reports.eval_folder import read_evaluation
from psynth_jax.reports.eval_lines import natural
from psynth_jax.reports.json_objects import Interval
from tests.reports.evaluation_folders import (
    RIGHT,
    lines,
    question,
    row,
    rows,
    summary,
    write_folder,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "sums", 20)


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


class TestFinished:
    def test_numbers_of_the_summary(self, folder: Path) -> None:
        found = read_evaluation(folder)
        assert (found.name, found.task, found.batch, found.running) == ("sums", "sums", 4.0, False)
        assert (found.workers_tokens_per_s, found.workers_seconds) == (812.0, 130.0)
        assert [method.name for method in found.methods] == [
            "text",
            "branches",
            "question",
            "wrong-branches",
            "vote",
        ]
        assert (found.scores, found.main_score, found.right_score) == (["accuracy"],) + ("accuracy",) * 2
        branches = found.methods[1]
        assert dataclasses.asdict(branches) | {"scores": 0, "differences": 0, "consistency": 0} == {
            "name": "branches",
            "answers": 20,
            "finished": True,
            "scores": 0,
            "differences": 0,
            "consistency": 0,
            "ttft_s": 0.2,
            "total_s": 2.2,
            "prompt_tokens": 60.0,
            "cached_tokens": 740.0,
            "generated_tokens": 110.0,
            "cut_off": 0,
            "does_not_fit": 0,
        }
        assert branches.scores == {"accuracy": Interval(0.7, pytest.approx(0.65), 0.75)}
        assert branches.differences["accuracy"].value == pytest.approx(0.1)
        assert branches.consistency == Interval(0.9, 0.85, 0.95)

    def test_questions_in_the_order_of_people(self, folder: Path) -> None:
        found = read_evaluation(folder).questions
        assert [asked.key for asked in found] == [("sums", f"q{number}") for number in range(20)]
        assert (found[12].question, found[12].right_answers) == ("What is the sum of 12 and 0?", ("12",))
        assert [worker.role for worker in found[12].workers] == ["solver", "checker", "solver"]
        assert found[12].seconds == 3.25

    def test_answers(self, folder: Path) -> None:
        answer = read_evaluation(folder).answers["branches"]["sums", "q6"]
        assert (answer.prediction, answer.scores, answer.ttft_s) == ("6", {"accuracy": 1.0}, 0.2)
        assert answer.extras == {"confidence": "likelihood 0.9, margin 0.8"}

    def test_gate(self, folder: Path) -> None:
        gate = read_evaluation(folder).gate
        assert gate is not None
        assert (gate.measure, gate.score, gate.threshold) == ("margin", "accuracy", 0.6)
        assert [point.threshold for point in gate.curve] == [0, 0.2, 0.4, 0.6, 0.8, 1]
        assert gate.curve[2].accepted == pytest.approx(0.6)

    def test_a_gate_that_was_given_has_no_curve(self, folder: Path) -> None:
        edit(folder / "summary.json", gate={"threshold": 0.5, "measure": "margin"})
        gate = read_evaluation(folder).gate
        assert gate is not None and gate.curve == ()

    def test_the_main_score_is_that_of_the_summary(self, folder: Path) -> None:
        told = summary(20)
        for method in told["methods"].values():
            method["accuracy_base"] = method["accuracy"]
        (folder / "summary.json").write_text(json.dumps(told | {"main_score": "accuracy_base"}))
        assert read_evaluation(folder).main_score == "accuracy_base"


class TestParts:
    def test_are_read_as_one(self, tmp_path: Path, folder: Path) -> None:
        parted = read_evaluation(write_folder(tmp_path / "a" / "sums", 20, parts=4))
        whole = read_evaluation(folder)
        assert parted.questions == whole.questions and parted.answers == whole.answers
        assert parted.methods == whole.methods

    def test_a_row_that_is_there_twice_counts_once(self, folder: Path) -> None:
        lines(folder / "rows.1-of-2.jsonl", [row("text", 0, prediction="of the part")])
        found = read_evaluation(folder).answers["text"]
        assert len(found) == 20 and found["sums", "q0"].prediction == "0"

    def test_other_files_are_left_alone(self, folder: Path) -> None:
        for name in ("rows_old.jsonl", "rows.old.jsonl", "rows.1-of-4.jsonl.gz"):
            (folder / name).write_text("not JSON\n")
        (folder / "others.jsonl").write_text("not JSON\n")
        assert len(read_evaluation(folder).questions) == 20


class TestRunning:
    def test_counts_what_is_there(self, folder: Path) -> None:
        (folder / "summary.json").unlink()
        found = read_evaluation(folder)
        assert found.running and found.gate is None and found.task == "sums"
        by_name = {method.name: method for method in found.methods}
        assert {name: method.scores for name, method in by_name.items()} == {
            name: {"accuracy": Interval(len(right) / 10)} for name, right in RIGHT.items()
        }
        assert (by_name["text"].ttft_s, by_name["text"].prompt_tokens) == (0.8, 800.0)
        assert (by_name["vote"].ttft_s, by_name["vote"].finished) == (None, False)
        assert (by_name["wrong-branches"].does_not_fit, by_name["wrong-branches"].ttft_s) == (1, 0.25)

    def test_a_method_that_the_summary_lacks(self, folder: Path) -> None:
        lines(folder / "rows.2-of-2.jsonl", [row("text", 3) | {"method": "gated"}])
        found = read_evaluation(folder)
        assert not found.running
        assert [(method.name, method.answers, method.finished) for method in found.methods][2] == ("gated", 1, False)

    def test_a_method_that_has_more_answers_than_the_summary(self, folder: Path) -> None:
        """A run that grows: the numbers of the summary are not those of its rows any more."""
        lines(folder / "rows.2-of-2.jsonl", [row("text", 20)])
        found = read_evaluation(folder)
        by_name = {method.name: method for method in found.methods}
        assert (by_name["text"].answers, by_name["text"].finished) == (21, False)
        assert by_name["branches"].finished

    def test_of_several_processes_the_first_has_written_a_summary(self, folder: Path) -> None:
        edit(folder / "summary.json", methods={})
        found = read_evaluation(folder)
        assert found.running and found.methods[1].scores == {"accuracy": Interval(0.7)}

    def test_a_torn_line(self, folder: Path) -> None:
        (folder / "summary.json").unlink()
        with (folder / "rows.jsonl").open("a") as file:
            file.write('{"method": "text", "ta')
        assert len(read_evaluation(folder).answers["text"]) == 20


class TestEarlierVersions:
    def test_without_total_time_key_and_questions(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "old", 10)
        old = []
        for each in rows(10):
            del each["total_s"], each["key"]
            each["em"] = each.pop("accuracy")
            each = {name: each[name] for name in (*list(each)[:5], "em", *list(each)[5:-1])}
            old.append(each)
        lines(folder / "rows.jsonl", old)
        (folder / "questions.jsonl").unlink()
        interval = {"mean": 0.6, "low": 0.5, "high": 0.7}
        numbers = {"n": 10, "em": interval, "f1": interval, "cut_off": 1, "does_not_fit": 0, "ttft_s": 0.5}
        tokens = {"prompt_tokens": 7, "cached_tokens": 0, "generated_tokens": 3}
        compared = {"method": "branches", "against": "text", "score": "f1", "ratio": None}
        compared["difference"] = {"value": 0.1, "low": -0.1, "high": 0.3}
        methods = {"text": numbers | tokens, "branches": numbers | tokens}
        (folder / "summary.json").write_text(json.dumps({"methods": methods, "comparisons": [compared]}))
        found = read_evaluation(folder)
        text, branches = found.methods[:2]
        assert (text.total_s, text.cut_off, text.differences, text.consistency) == (None, 1, {}, None)
        assert branches.differences == {"f1": Interval(0.1, -0.1, 0.3)}
        assert (found.main_score, found.right_score) == ("f1", "em")
        asked = found.questions[3]
        assert (asked.key, asked.question, asked.right_answers, asked.workers) == (("sums", "q3"), "", ("3",), ())
        assert found.answers["text"]["sums", "q3"].scores == {"em": 1.0}


class TestRefused:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"there is no folder .*absent"):
            read_evaluation(tmp_path / "absent")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="file is not a folder"):
            read_evaluation(tmp_path / "file")

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"not the folder of an evaluation: it has no settings\.json"):
            read_evaluation(tmp_path)

    def test_no_answers_yet(self, tmp_path: Path) -> None:
        (tmp_path / "settings.json").write_text("{}")
        with pytest.raises(InputError, match="holds no answers yet"):
            read_evaluation(tmp_path)

    def test_a_bucket_and_what_is_no_name(self) -> None:
        with pytest.raises(InputError, match="is in a bucket"):
            read_evaluation("gs://bucket/results")
        with pytest.raises(InputError, match="there is no folder"):
            read_evaluation("a\0b")

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("settings.json", "[]", r"settings\.json: \[\] is not a JSON object"),
            ("summary.json", "{", r"summary\.json is not JSON"),
            ("summary.json", "{}", r"summary\.json: its methods is None"),
            ("summary.json", '{"methods": {"text": {"f1": {"mean": 1}}}}', r"summary\.json: methods: text: f1: its low"),
            ("rows.jsonl", '{"method": "text"}\n', r"rows\.jsonl:1: its task is None; it must be a text"),
            ("questions.jsonl", '{"task": "a", "id": "b"}\n', r"questions\.jsonl:1: its question is None"),
        ],
    )
    def test_a_damaged_file(self, folder: Path, file: str, content: str, message: str) -> None:
        (folder / file).write_text(content)
        with pytest.raises(DataError, match=message):
            read_evaluation(folder)

    @pytest.mark.parametrize("score", [1.5, -0.1, "1", None, True, float("nan")])
    def test_a_score_that_is_none(self, folder: Path, score: Any) -> None:
        lines(folder / "rows.jsonl", [row("text", 0), row("text", 1, accuracy=score)])
        with pytest.raises(DataError, match=r"rows\.jsonl:2: its accuracy is .*; it must be a number from 0 to 1"):
            read_evaluation(folder)

    def test_workers_that_are_none(self, folder: Path) -> None:
        lines(folder / "questions.jsonl", [question(0, workers=[{"text": 3}])])
        with pytest.raises(DataError, match=r"questions\.jsonl:1: workers: its text is 3"):
            read_evaluation(folder)


def test_numbers_in_names_are_compared_as_numbers() -> None:
    names = ["q10", "q9", "q09", "q1" + "0" * 5000, "a", "", "²", "q9b"]
    assert sorted(names, key=natural) == ["", "a", "q9", "q09", "q9b", "q10", "q1" + "0" * 5000, "²"]
