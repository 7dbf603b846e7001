"""Every benchmark from workers to summary, with a model whose answers are known: every score is exact.

question   workers write           text    branches
0          right  right  wrong     right   right
1          wrong  wrong  right     wrong   right
2          wrong  wrong  wrong     right   wrong
3          right  wrong  nothing   wrong   right
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.evaluation.benchmarks.registry import benchmark
from psynth_jax.evaluation.live import WorkerOptions
from psynth_jax.evaluation.methods import Synthesizers, choose
from psynth_jax.evaluation.run import Plan, evaluate
from psynth_jax.synthesis.pipeline import ParallelSynthesis, SynthesisResult
from tests.evaluation.benchmarks.rows_files import written
from tests.evaluation.benchmarks.test_humaneval import RELEASE as HUMANEVAL
from tests.evaluation.benchmarks.test_mbpp import RELEASE as MBPP
from tests.tiny import random_lora, talking_model

WORKERS = ((True, True, False), (False, False, True), (False, False, False), (True, False, None))
TEXT = (True, False, True, False)
BRANCHES = (True, True, False, True)
ACCURACY = {"text": 0.5, "branches": 0.75, "wrong-branches": 0.0, "vote": 0.5, "best-worker": 0.75}


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows of a benchmark, and of each the text of a right answer and of a wrong one."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    right: Sequence[str]
    wrong: Sequence[str]


def _numbers(name: str, asked: str, gold: str) -> Case:
    rows = [{asked: f"Number {n}?", "answer": f"{gold}{n + 7}"} for n in range(4)]
    right = [f"Let me see. \\boxed{{{n + 7}}}" for n in range(4)]
    return Case(name, rows, right, [f"Let me see. \\boxed{{{n + 70}}}" for n in range(4)])


def _letters(name: str) -> Case:
    options = {"A": "one", "B": "two", "C": "three", "D": "four"}
    rows = []
    for number, letter in enumerate("ABCD"):
        row = {"question": f"Which is number {number}?", "options": options}
        rows.append(row | {"answer" if name == "gpqa" else "answer_idx": letter})
    right = [f"I think \\boxed{{{letter}}}" for letter in "ABCD"]
    return Case(name, rows, right, [f"I think \\boxed{{{letter}}}" for letter in "BCDA"])


def _programs(name: str, row: Mapping[str, Any], right: str, wrong: str) -> Case:
    rows = []
    for number in range(4):
        # Comments tell the questions apart, and their solutions: wrong branches are those of another answer.
        prompt = row["prompt"].replace("\n", f"  # number {number}\n", 1)
        solution = f"{row['canonical_solution']}    # number {number}\n"
        rows.append({**row, "task_id": f"{name}/{number}", "prompt": prompt, "canonical_solution": solution})
    told = []
    for text in (right, wrong):
        told.append([f"Number {number}:\n```python\n{text}```" for number in range(4)])
    return Case(name, rows, *told)


CASES = (
    _numbers("gsm8k", "question", "Think. #### "),
    _numbers("aime24", "problem", ""),
    _numbers("aime25", "problem", ""),
    _letters("gpqa"),
    _letters("medqa"),
    _programs("humaneval_plus", HUMANEVAL, "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a - b\n"),
    _programs("mbpp_plus", MBPP, MBPP["canonical_solution"], "def rotate(items, by):\n    return items\n"),
)


def _number(prompt: str) -> int:
    """Return which question a prompt is about."""
    found = re.search(r"[Nn]umber (\d)", prompt)
    assert found is not None
    return int(found[1])


class Script:
    """What the model says: stands in for what `ParallelSynthesis` computes."""

    def __init__(self, case: Case):
        self.case = case

    def said(self, question: int, right: bool | None) -> str:
        if right is None:
            return ""
        return (self.case.right if right else self.case.wrong)[question]

    def work(self, prompts: Sequence[Sequence[Any]], *args: Any, **options: Any) -> Any:
        groups = []
        for group in prompts:
            number = _number(group[0][0]["content"])
            branches = []
            for worker, right in enumerate(WORKERS[number]):
                text = self.said(number, right)
                branches.append(types.SimpleNamespace(token_ids=(number, worker), text=text, finish_reason="stop"))
            groups.append(branches)
        return types.SimpleNamespace(questions=groups)

    def encode(self, texts: Sequence[Sequence[Any]], prefixes: Any) -> list[int]:
        """Return whose workers' tokens these are."""
        return [group[0][0] for group in texts]

    def synthesize(self, questions: Sequence[str], owners: Sequence[int], **options: Any) -> list[SynthesisResult]:
        results = []
        for query, owner in zip(questions, owners, strict=True):
            number = _number(query)
            results.append(self._result(number, BRANCHES[number] and owner == number))
        return results

    def synthesize_text(self, questions: Sequence[str], texts: Any, **options: Any) -> list[SynthesisResult]:
        return [self._result(_number(query), TEXT[_number(query)]) for query in questions]

    def _result(self, number: int, right: bool) -> SynthesisResult:
        return SynthesisResult(self.said(number, right), [1, 2, 3], 0.5, 10, 20, 4.0, "stop", total_s=1.0)


@pytest.fixture(scope="module")
def synthesizers() -> Synthesizers:
    model = talking_model()
    return Synthesizers.over(model, Adapter(random_lora(model.config, 1), None))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_score_is_exact(
    case: Case, synthesizers: Synthesizers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = benchmark(case.name, written(tmp_path, "rows.jsonl", case.rows))
    script = Script(case)
    for name in ("work", "encode", "synthesize", "synthesize_text"):
        monkeypatch.setattr(ParallelSynthesis, name, staticmethod(getattr(script, name)))
    plan = Plan.of(task, choose(list(ACCURACY), {"adapter"}), batch=4, workers=WorkerOptions())
    found = evaluate(plan, synthesizers, tmp_path / "results")
    assert {name: method["accuracy"]["mean"] for name, method in found["methods"].items()} == ACCURACY
    assert found["methods"]["branches"]["difference_to_text"]["accuracy"]["value"] == 0.25
    assert found["methods"]["branches"]["judge_consistency"]["mean"] == 0.25
    assert (found["methods"]["branches"]["ttft_s"], found["methods"]["branches"]["total_s"]) == (0.5, 1.0)
