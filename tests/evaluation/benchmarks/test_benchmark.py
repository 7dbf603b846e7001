"""What every benchmark does: read the hub at a commit, name it in the settings, be run as a task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.data.record import BranchText
from psynth_jax.data.sources import hub
from psynth_jax.errors import InputError
from psynth_jax.evaluation.benchmarks.benchmark import Benchmark, BenchmarkQuestion
from psynth_jax.evaluation.benchmarks.gpqa import GPQA
from psynth_jax.evaluation.benchmarks.gsm8k import GSM8K
from psynth_jax.evaluation.tasks import Question
from psynth_jax.evaluation.voting import elected


@dataclasses.dataclass(frozen=True)
class HereInstead(hub.HubDataSet):
    """A data set of the hub whose files lie in a folder."""

    folder: Path = Path()

    def fetch(self, file: str) -> Path:
        return self.folder / file


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The revisions that the hub is asked for; its newest commit is c0ffee."""
    asked: list[tuple[str, str | None]] = []

    def find(name: str, revision: str | None) -> hub.HubDataSet:
        asked.append((name, revision))
        files = tuple(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file())
        return HereInstead(name, revision or "c0ffee", files, tmp_path)

    monkeypatch.setattr(hub, "find", find)
    return asked


def test_a_pinned_data_set(tmp_path: Path, asked: list[tuple[str, str | None]]) -> None:
    (tmp_path / "main").mkdir()
    for split in ("train", "test"):
        row = {"question": split, "answer": "#### 1"}
        (tmp_path / "main" / f"{split}-00000-of-00001.jsonl").write_text(json.dumps(row) + "\n")
    benchmark = GSM8K()
    assert [question.query.partition("\n")[0] for question in benchmark.questions()] == ["test"]
    commit = "e53f048856ff4f594e959d75785d2c2d37b678ee"
    assert set(asked) == {("openai/gsm8k", commit)}
    assert benchmark.settings() == {"benchmark": "gsm8k", "revision": commit}
    asked.clear()
    GSM8K(revision="other").questions()
    assert set(asked) == {("openai/gsm8k", "other")}


def test_the_newest_commit_is_noted(tmp_path: Path, asked: list[tuple[str, str | None]]) -> None:
    text = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\nWhich?,a,b,c,d\n"
    (tmp_path / "gpqa_diamond.csv").write_text(text)
    card = "---\nconfigs:\n- config_name: gpqa_diamond\n  data_files: gpqa_diamond.csv\n---\n"
    (tmp_path / "README.md").write_text(card)
    benchmark = GPQA()
    assert benchmark.settings()["revision"] is None
    assert len(benchmark.questions()) == 1
    assert asked == [("Idavidrein/gpqa", None), ("Idavidrein/gpqa", "c0ffee")]
    assert benchmark.settings()["revision"] == "c0ffee"


class Local(Benchmark):
    """A benchmark that is on no hub."""

    name = "local"  # type: ignore[misc]

    def question(self, where: str, row: Mapping[str, Any], number: int) -> BenchmarkQuestion:
        return BenchmarkQuestion(str(number), self.name, row["q"], (), ("1",))

    def judged(self, written: str, question: Question) -> tuple[str, Mapping[str, float]]:
        return written, {"accuracy": float(written in question.answers)}


def test_without_a_hub(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^local is on no hub; give it a file of its data$"):
        Local()
    (tmp_path / "rows.jsonl").write_text('{"q": "?"}\n')
    benchmark = Local(str(tmp_path / "rows.jsonl"))
    (question,) = benchmark.questions()
    assert benchmark.score("1", question) == {"accuracy": 1.0}


def test_workers_vote(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "?", "answer": "#### 1000"}\n')
    benchmark = GSM8K(str(tmp_path / "rows.jsonl"))
    (question,) = benchmark.questions()
    texts = (r"\boxed{5}", r"\boxed{1,000}", "no idea", "it is 1000.0")
    live = dataclasses.replace(question, branches=tuple(BranchText(text) for text in texts))
    assert elected(benchmark, live) == r"\boxed{1,000}"


def test_a_question_of_another_task() -> None:
    with pytest.raises(InputError, match=r"^question 'q' of other is no benchmark's question$"):
        GSM8K("rows.jsonl").judged("1", Question("q", "other", "?", (), ("1",)))
