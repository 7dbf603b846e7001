"""GSM8K answers, scored by lm-eval's own task and filters and by ours: they agree, but for what is listed.

lm-eval reads the last number of an answer ("flexible-extract") and compares it as a text.  Ours takes the last box, else the
last number, and compares values.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from psynth_jax.evaluation.benchmarks.registry import benchmark
from tests.evaluation.benchmarks.witnessed import AGREE, DIFFER

ALL = [*((gold, text) for gold, text, _ in AGREE), *((gold, text) for gold, text, _, _ in DIFFER)]


class Scripted(LM):
    """A model that answers from a list, in order."""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [ALL[request.doc_id][1] for request in requests]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        raise NotImplementedError("GSM8K asks for text")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        raise NotImplementedError("GSM8K asks for text")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gsm8k") / "test.jsonl"
    lines = [{"question": f"Question {number}?", "answer": f"Think.\n#### {gold}"} for number, (gold, _) in enumerate(ALL)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def theirs(rows: Path) -> list[bool]:
    """Scores of lm-eval's gsm8k, its own YAML over local rows."""
    source = resources.files("lm_eval") / "tasks" / "gsm8k" / "gsm8k.yaml"
    config = yaml.safe_load(source.read_text(encoding="utf-8"))
    local = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}, "num_fewshot": 0}
    for name in ("dataset_name", "training_split", "fewshot_split", "tag"):
        config.pop(name)
    task = ConfigurableTask(config=config | local)
    found = simple_evaluate(model=Scripted(), tasks=[task], log_samples=True, bootstrap_iters=0)
    samples = [sample for sample in found["samples"]["gsm8k"] if sample["filter"] == "flexible-extract"]
    samples.sort(key=lambda sample: sample["doc_id"])
    return [bool(sample["exact_match"]) for sample in samples]


@pytest.fixture(scope="module")
def ours(rows: Path) -> list[bool]:
    task = benchmark("gsm8k", str(rows))
    scores = []
    for question, (_, text) in zip(task.questions(), ALL, strict=True):
        scores.append(bool(task.judged(text, question)[1]["accuracy"]))
    return scores


def test_both_agree(ours: list[bool], theirs: list[bool]) -> None:
    right = [each for _, _, each in AGREE]
    assert ours[: len(AGREE)] == right
    assert theirs[: len(AGREE)] == right


def test_where_they_differ(ours: list[bool], theirs: list[bool]) -> None:
    assert ours[len(AGREE) :] == [own for _, _, own, _ in DIFFER]
    assert theirs[len(AGREE) :] == [other for _, _, _, other in DIFFER]
