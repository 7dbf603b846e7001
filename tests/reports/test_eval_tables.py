"""The tables of the page: the exact texts of known numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from psynth_jax.reports.eval_folder import Evaluation, read_evaluation
from psynth_jax.reports.eval_methods import main_score, note_of, ordered, right_score, score_label
from psynth_jax.reports.eval_tables import (
    Group,
    by_task_table,
    comparison_table,
    costs_table,
    duration,
    facts,
    flat,
    percent,
    scores_table,
)
from psynth_jax.reports.json_objects import Interval
from tests.reports.evaluation_folders import lines, row, write_folder


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    return read_evaluation(write_folder(tmp_path / "sums", 300))


def texts(groups: tuple[Group, ...]) -> dict[str, list[str]]:
    found = {}
    for group in groups:
        for line in group.lines:
            found[line.name] = [cell.text for cell in line.cells]
    return found


class TestScores:
    def test_numbers(self, evaluation: Evaluation) -> None:
        table = scores_table(evaluation)
        assert table.columns == (
            "Accuracy, %",
            "Accuracy against text, points",
            "Same answer as text, %",
            "Cut off",
            "Does not fit",
            "Questions",
        )
        same = "90.0 [85.0, 95.0]"
        assert texts(table.groups) == {
            "text": ["60.0 [55.0, 65.0]", "–", same, "0", "0", "300"],
            "branches": ["70.0 [65.0, 75.0]", "+10.0 [-1.0, 15.0]", same, "0", "0", "300"],
            "question": ["10.0 [5.0, 15.0]", "-50.0 [-61.0, -45.0]", same, "0", "0", "300"],
            "wrong-branches": ["0.0 [0.0, 5.0]", "-60.0 [-71.0, -55.0]", same, "0", "1", "300"],
            "vote": ["50.0 [45.0, 55.0]", "-10.0 [-21.0, -5.0]", same, "0", "0", "300"],
        }

    def test_controls_are_a_group_of_their_own(self, evaluation: Evaluation) -> None:
        groups = scores_table(evaluation).groups
        assert [group.label for group in groups] == ["Methods", "Controls"]
        assert [line.name for line in groups[1].lines] == ["question", "wrong-branches", "vote"]
        assert groups[1].lines[0].note == "reads no branch: what can be guessed"

    def test_a_difference_is_noise_where_its_interval_crosses_0(self, evaluation: Evaluation) -> None:
        marks = {}
        for method in evaluation.methods:
            differences = {"accuracy": Interval(0.1, 0.02, 0.2)} if method.name == "vote" else method.differences
            marks[method.name] = dataclasses.replace(method, differences=differences)
        changed = dataclasses.replace(evaluation, methods=tuple(marks.values()))
        found = {}
        for group in scores_table(changed).groups:
            for line in group.lines:
                found[line.name] = line.cells[1].mark
        assert found == {"text": "", "branches": "noise", "question": "worse", "wrong-branches": "worse", "vote": "better"}

    def test_of_a_run_that_is_going_on(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "sums", 10)
        (folder / "summary.json").unlink()
        table = scores_table(read_evaluation(folder))
        assert table.columns == ("Accuracy, %", "Same answer as text, %", "Cut off", "Does not fit", "Questions")
        assert texts(table.groups)["branches"] == ["70.0", "–", "0", "0", "10"]

    def test_a_method_that_is_not_finished_says_so(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "sums", 10)
        lines(folder / "rows.2-of-2.jsonl", [row("text", 3) | {"method": "new"}])
        methods = scores_table(read_evaluation(folder)).groups[0]
        assert [(line.name, line.note) for line in methods.lines][2] == ("new", "not finished, no intervals")


def test_costs(evaluation: Evaluation) -> None:
    table = costs_table(evaluation)
    assert texts(table.groups) == {
        "text": ["800 ms", "2.80 s", "800", "0", "120"],
        "branches": ["200 ms", "2.20 s", "60", "740", "110"],
        "question": ["150 ms", "2.15 s", "60", "0", "90"],
        "wrong-branches": ["250 ms", "2.25 s", "60", "740", "100"],
        "vote": ["–", "–", "0", "0", "0"],
    }


def test_by_task(tmp_path: Path, evaluation: Evaluation) -> None:
    assert by_task_table(evaluation) is None
    folder = write_folder(tmp_path / "several", 10)
    told = json.loads((folder / "summary.json").read_text())
    reached = {"n": 5, "accuracy": {"mean": 0.5, "low": 0.25, "high": 0.75}}
    told["by_task"] = {"sums": {"text": reached, "branches": reached}, "products": {"text": reached}}
    (folder / "summary.json").write_text(json.dumps(told))
    table = by_task_table(read_evaluation(folder))
    assert table is not None
    assert (table.caption, table.columns) == ("Accuracy by task, %", ("sums", "products"))
    found = texts(table.groups)
    assert found["text"] == ["50.0 [25.0, 75.0]"] * 2
    assert (found["branches"], found["vote"]) == (["50.0 [25.0, 75.0]", "–"], ["–", "–"])


def test_folders_side_by_side(tmp_path: Path, evaluation: Evaluation) -> None:
    other = write_folder(tmp_path / "other", 10)
    (other / "summary.json").unlink()
    lines(other / "rows.jsonl", [row("text", 0), row("text", 9), row("text", 1) | {"method": "text-lora"}])
    table = comparison_table([evaluation, read_evaluation(other)], ["1. sums", "2. other"])
    assert table.columns == (
        "1. sums: Accuracy, %",
        "1. sums: time to first token",
        "2. other: Accuracy, %",
        "2. other: time to first token",
    )
    found = texts(table.groups)
    assert list(found) == ["text", "text-lora", "branches", "question", "wrong-branches", "vote"]
    assert found["text"] == ["60.0 [55.0, 65.0]", "800 ms", "50.0", "800 ms"]
    assert found["text-lora"] == ["–", "–", "100.0", "800 ms"]
    assert found["vote"] == ["50.0 [45.0, 55.0]", "–", "–", "–"]


def test_facts(evaluation: Evaluation) -> None:
    assert list(facts(evaluation)) == [
        ("task", "sums"),
        ("questions", "300"),
        ("Accuracy, text", "60.0%"),
        ("Accuracy, branches", "70.0%"),
        ("workers wrote for", "2.2 min"),
        ("workers' tokens per second", "812"),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0, "0 ms"), (0.01234, "12.3 ms"), (1.0, "1.00 s"), (119.9, "119.90 s"), (150.0, "2.5 min")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_percent() -> None:
    assert percent(None) == "–"
    assert percent(Interval(0.6234)) == "62.3"
    assert percent(Interval(0.6234, 0.5666, 0.6766)) == "62.3 [56.7, 67.7]"


def test_settings_are_flat() -> None:
    settings = {"a": {"b": 1, "c": {"d": "<x>"}}, "e": {}, "f": None, "g": [1, "ü"]}
    assert list(flat(settings)) == [("a.b", "1"), ("a.c.d", "<x>"), ("e", "{}"), ("f", "null"), ("g", '[1, "ü"]')]


def test_order_and_names() -> None:
    given = ["vote", "new", "branches", "gated", "text", "self", "text-lora", "recompute:8"]
    assert ordered(given) == ["text", "text-lora", "branches", "gated", "new", "recompute:8", "vote", "self"]
    assert [score_label(name) for name in ("em", "f1", "accuracy_published")] == ["EM", "F1", "Accuracy, published"]
    assert note_of("recompute:8") == "reads the caches, their first 8 tokens computed again"
    assert (note_of("text"), note_of("new")) == ("reads the workers' texts; base model", "")
    assert (main_score(["em", "f1"]), right_score(["em", "f1"])) == ("f1", "em")
    assert (main_score(["own"]), main_score([])) == ("own", None)
