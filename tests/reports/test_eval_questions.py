"""The questions as JSON for the page: filters, texts that are cut, and that nothing can leave the script element."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psynth_jax.reports.eval_folder import read_evaluation
from psynth_jax.reports.eval_questions import counts, cut, question_data, script_json
from tests.reports.evaluation_folders import lines, question, row, write_folder

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>\u2028\u2029]]>&amp;\\u003c\0"


class TestScript:
    @pytest.mark.parametrize("text", [HOSTILE, "<", "</SCRIPT>", "\\", '"', "\\u003c"])
    def test_texts_come_back_and_cannot_break_out(self, text: str) -> None:
        made = script_json({text: [text]})
        assert not {"<", ">", "&", "\u2028", "\u2029"} & set(made)
        assert json.loads(made) == {text: [text]}

    def test_what_is_not_json_is_refused(self) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            script_json([float("nan")])


class TestFilters:
    def test_counts_by_hand(self, tmp_path: Path) -> None:
        """Of ten numbers text is right on 0 to 5, branches on 1 to 7."""
        data = question_data(read_evaluation(write_folder(tmp_path / "sums", 300)))
        assert counts(data["questions"]) == {
            "text-only": 30,
            "branches-only": 60,
            "all-wrong": 60,
            "differing": 90,
            "does-not-fit": 1,
        }
        by_flag = {}
        for flag in ("text-only", "branches-only", "all-wrong"):
            by_flag[flag] = {int(each["id"][1:]) % 10 for each in data["questions"] if flag in each["flags"]}
        assert by_flag == {"text-only": {0}, "branches-only": {6, 7}, "all-wrong": {8, 9}}
        assert [each["id"] for each in data["questions"] if "does-not-fit" in each["flags"]] == ["q0"]

    def test_spelling_is_no_difference(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "sums", 10)
        lines(folder / "rows.jsonl", [row("text", 1, key="Rome  x"), row("branches", 1, key="rome X")])
        data = question_data(read_evaluation(folder))
        assert data["questions"][1]["flags"] == []

    def test_of_controls_alone(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "sums", 10)
        (folder / "summary.json").unlink()
        lines(folder / "rows.jsonl", [row("question", 0), row("vote", 0), row("vote", 7), row("question", 7)])
        flags = {each["id"]: each["flags"] for each in question_data(read_evaluation(folder))["questions"]}
        assert (flags["q0"], flags["q7"], flags["q1"]) == ([], ["all-wrong"], [])


def test_a_question_as_the_page_gets_it(tmp_path: Path) -> None:
    data = question_data(read_evaluation(write_folder(tmp_path / "sums", 10)))
    assert {name: data[name] for name in ("name", "tasks", "scores", "right")} == {
        "name": "sums",
        "tasks": ["sums"],
        "scores": ["accuracy"],
        "right": "accuracy",
    }
    assert data["methods"][0] == {"name": "text", "control": False}
    assert data["methods"][-1] == {"name": "vote", "control": True}
    found = data["questions"][6]
    assert (found["task"], found["id"], found["right"], found["seconds"]) == ("sums", "q6", ["6"], 3.25)
    assert found["flags"] == ["branches-only", "differing"]
    assert found["workers"][1] | {"text": ""} == {"text": "", "role": "checker", "finish": "stop", "tokens": 101.0}
    assert found["answers"]["text"] == {
        "right": False,
        "scores": [0.0],
        "prediction": "not 6",
        "written": "Method text adds up.\nAnswer: not 6",
        "ttft": 0.8,
        "total": 2.8,
        "prefilled": 800.0,
        "read": 0.0,
        "wrote": 120.0,
        "finish": "stop",
        "confidence": "likelihood 0.9, margin 0.8",
    }
    too_long = data["questions"][0]["answers"]["wrong-branches"]
    assert (too_long["finish"], too_long["error"], too_long["right"]) == ("does_not_fit", "too long by 5 tokens", False)
    assert "ttft" not in too_long and "read" not in too_long


def test_long_texts_are_cut(tmp_path: Path) -> None:
    assert cut("abcdef", 6) == cut("abcdef", None) == "abcdef"
    assert cut("abcdef" * 1000, 2) == "ab\n[5,998 more characters]"
    folder = write_folder(tmp_path / "sums", 10)
    lines(folder / "questions.jsonl", [question(1, question="x" * 30, answers=["y" * 30])])
    lines(folder / "rows.jsonl", [row("text", 1, written="z" * 30)])
    found = question_data(read_evaluation(folder), longest=5)["questions"][0]
    assert found["question"] == "xxxxx\n[25 more characters]"
    assert found["right"] == ["yyyyy\n[25 more characters]"]
    assert found["answers"]["text"]["written"] == "zzzzz\n[25 more characters]"
    assert found["workers"][0]["text"].startswith("I am \n[")
