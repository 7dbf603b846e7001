"""`psynth eval BENCHMARK`: live workers, given answers, parts of a run, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.test_documents import documented

ANSWERS = ("#### 18", "#### 1,000", "#### -3", "#### 7")
QUICK = ("--workers", 2, "--max-new-tokens", 4, "--worker-max-new-tokens", 5)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k.jsonl"
    lines = [{"question": f"What is number {n}?", "answer": f"Think.\n{text}"} for n, text in enumerate(ANSWERS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_answers(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()))
    return path


def test_workers_write_and_methods_answer(psynth: Command, model_directory: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    options = ("--data", rows, "--model", model_directory, "--methods", "text,identity,vote", "--into", folder, *QUICK)
    found = psynth("eval", "gsm8k", *options, "--limit", 3, "--json").json
    keys = documented("eval") - {"final_answer"} | documented("eval BENCHMARK")
    assert set(found) == keys - {"final_answer"}
    assert (found["benchmark"], found["questions"], found["workers"]) == ("gsm8k", 3, 2)
    assert set(found["methods"]) == {"text", "identity", "vote"}
    for method in found["methods"].values():
        assert {"mean", "low", "high"} == set(method["accuracy"])
        assert {"ttft_s", "total_s", "prompt_tokens", "cached_tokens"} <= set(method)
    assert found["methods"]["identity"]["difference_to_text"]["accuracy"] == {"value": 0, "low": 0, "high": 0}
    assert len((folder / "questions.jsonl").read_text().splitlines()) == 3
    again = psynth("eval", "gsm8k", *options, "--limit", 3)
    assert again.code == 0 and "same answer as text" in again.err


def test_without_a_folder_nothing_is_left(
    psynth: Command, model_directory: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    options = ("--data", rows, "--model", model_directory, "--methods", "vote", "--limit", 1, *QUICK)
    assert psynth("eval", "gsm8k", *options).code == 0
    assert set(tmp_path.iterdir()) == before


class TestAnswers:
    def test_are_scored_exactly(self, psynth: Command, rows: Path, tmp_path: Path) -> None:
        texts = {
            "0": "16 - 3 + 5 = \\boxed{18}",
            "1": "that makes 1,000.",
            "2": "\\boxed{3}",
            "3": "\\boxed{7.0}",
        }
        given = write_answers(tmp_path / "answers.jsonl", texts)
        found = psynth("eval", "gsm8k", "--data", rows, "--answers", given, "--json").json
        assert set(found) == documented("eval BENCHMARK --answers")
        scores = found["methods"]["answers"]
        assert scores["accuracy"]["mean"] == 0.75
        assert scores["accuracy_published"]["mean"] == 0.25  # it reads 1,000 as 1 or 000, and takes 7.0 for another text
        assert scores["ttft_s"] is None

    def test_join_a_folder(self, psynth: Command, model_directory: Path, rows: Path, tmp_path: Path) -> None:
        folder = tmp_path / "results"
        options = ("--data", rows, "--into", folder, "--limit", 2)
        psynth("eval", "gsm8k", *options, "--model", model_directory, "--methods", "identity", *QUICK)
        given = write_answers(tmp_path / "answers.jsonl", {"0": "18", "1": "2"})
        found = psynth("eval", "gsm8k", *options, "--answers", given, "--json").json
        assert set(found["methods"]) == {"identity", "answers"}
        settings = json.loads((folder / "settings.json").read_text())
        assert (settings["workers"], settings["batch"], settings["max_new_tokens"]) == (2, 8, 4)
        other = ("--model", model_directory, "--methods", "text", *QUICK, "--batch", 1)
        assert "batch is 1, it was 8" in psynth("eval", "gsm8k", *options, *other).err

    @pytest.mark.parametrize(
        ("lines", "said"),
        [
            ('{"id": "9", "text": "1"}', "answers.jsonl:1: no question has the id '9'"),
            ('{"id": "0", "text": "1"}\n{"id": "0", "text": "2"}', "answers.jsonl:2: the id '0' is there twice"),
            ('{"id": "0", "text": "1"}', "has no answer to question '1' and to 2 more"),
            ('{"id": 0, "text": "1"}', "'id' must be a text, not 0"),
            ('{"id": "0"}', "'text' must be a text, not None"),
            ("nonsense", "answers.jsonl:1: not JSON"),
        ],
    )
    def test_refuse(self, psynth: Command, rows: Path, tmp_path: Path, lines: str, said: str) -> None:
        given = tmp_path / "answers.jsonl"
        given.write_text(lines + "\n")
        done = psynth("eval", "gsm8k", "--data", rows, "--answers", given)
        assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1

    def test_other_answers_go_elsewhere(self, psynth: Command, rows: Path, tmp_path: Path) -> None:
        options = ("--data", rows, "--into", tmp_path / "results", "--limit", 1)
        first = write_answers(tmp_path / "a.jsonl", {"0": "18"})
        second = write_answers(tmp_path / "b.jsonl", {"0": "19"})
        assert psynth("eval", "gsm8k", *options, "--answers", first).code == 0
        done = psynth("eval", "gsm8k", *options, "--answers", second)
        assert done.code == 2 and "has rows of other answers, as to '0'" in done.err

    def test_are_extended_and_shared(self, psynth: Command, rows: Path, tmp_path: Path) -> None:
        options = ("--data", rows, "--into", tmp_path / "results")
        given = write_answers(tmp_path / "a.jsonl", {"0": "18", "1": "2", "2": "3", "3": "7"})
        assert psynth("eval", "gsm8k", *options, "--answers", given, "--limit", 2).code == 0
        for part in ("1/2", "2/2"):
            done = psynth("eval", "gsm8k", *options, "--answers", given, "--shard", part, "--json")
            assert done.code == 0
        assert done.json["methods"]["answers"]["n"] == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("gsm9k",), "there is no benchmark 'gsm9k'; there are aime24, aime25"),
        ((), "name a benchmark, or give --data FILE"),
        (("gsm8k", "--data", "gone.jsonl"), "there is no data at gone.jsonl"),
        (("gsm8k", "--data", "ROWS", "--workers", 0), "workers is 0; it must be at least 1"),
        (("gsm8k", "--data", "ROWS", "--shard", "5/4", "--into", "x"), "shard 5/4"),
        (("gsm8k", "--data", "ROWS", "--final-answer"), "--final-answer is for files of records"),
        (("gsm8k", "--data", "ROWS", "--gate", "2"), "threshold is 2.0"),
        (("gsm8k", "--data", "ROWS", "--gate", "0.5"), "only gated takes it"),
        (("gsm8k", "--data", "ROWS", "--methods", "text", "--calibrate", "--into", "x"), "lacks one of them"),
        (("gsm8k", "--data", "ROWS", "--methods", "gated"), "needs an adapter and a gate"),
        (("gsm8k", "--data", "ROWS", "--answers", "a", "--methods", "text"), "leave --methods out"),
        (("gsm8k", "--data", "ROWS", "--answers", "a", "--workers", 2), "leave --workers out"),
        (("gsm8k", "--data", "ROWS", "--revision", "abc"), "'abc' is of data on the hub"),
        (("gsm8k", "--data", "ROWS", "--shard", "1/2"), "--shard needs --into DIR"),
        (("gsm8k", "--data", "ROWS", "--methods", "text,branches", "--calibrate"), "--calibrate needs --into DIR"),
        (("gsm8k", "--data", "ROWS", "--shard", f"1/{10**30}", "--into", "x"), "it must be NUMBER/COUNT"),
        (("gsm8k", "--data", "ROWS", "--methods", f"recompute:{10**30}"), "goes a number of tokens"),
        (("--data", "ROWS", "--into", "x", "--workers", 2), "leave --workers out"),
        (("--data", "ROWS"), "needs --into DIR"),
    ],
)
def test_refused_before_a_model_is_loaded(
    psynth: Command, rows: Path, options: tuple[object, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [rows if option == "ROWS" else option for option in options]
    done = psynth("eval", *given, "--model", "no-such-model")
    assert done.code == 2 and said in done.err
    assert len(done.err.splitlines()) == 1


def test_a_gate_is_calibrated_and_used(psynth: Command, model_directory: Path, tmp_path: Path) -> None:
    from psynth_jax.data.record import write_records
    from tests.evaluation.conftest import record

    data, folder = tmp_path / "records.jsonl", tmp_path / "results"
    write_records(data, [record(number, f"city {number}") for number in range(9)])
    options = ("--data", data, "--model", model_directory, "--adapter", tiny_adapter(tmp_path, model_directory))
    options += ("--max-new-tokens", 3, "--into", folder)
    found = psynth("eval", *options, "--methods", "text,branches", "--calibrate", "--json").json
    assert found["gate"]["calibrated_on"] + found["gate"]["held_out"] == 9
    shown = psynth("eval", *options, "--methods", "text,branches", "--calibrate")
    assert "chosen on" in shown.err
    gate = json.loads((folder / "gate.json").read_text())
    assert (gate["model"], gate["adapter"]) == (found["model"], found["adapter"])
    used = psynth("eval", *options, "--methods", "gated", "--gate", folder / "gate.json", "--json").json
    assert used["methods"]["gated"]["n"] == 9


def tiny_adapter(folder: Path, model_directory: Path) -> Path:
    """Write an adapter that changes a little."""
    import psynth_jax as ps
    from psynth_jax.convert.adapter_directory import Adapter
    from tests.tiny import random_lora

    model = ps.load_model(str(model_directory))
    path = folder / "adapter"
    ps.save_adapter(path, Adapter(random_lora(model.config, 1), None), model)
    return path


def test_parts_make_the_whole(psynth: Command, model_directory: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    options = ("--data", rows, "--model", model_directory, "--methods", "vote", "--into", folder, *QUICK)
    first = psynth("eval", "gsm8k", *options, "--shard", "1/2")
    assert first.code == 0 and "other parts of the run are missing" in first.err
    found = psynth("eval", "gsm8k", *options, "--shard", "2/2", "--json").json
    assert found["methods"]["vote"]["n"] == 4
