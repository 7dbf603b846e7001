"""The benchmark that docs/evaluation.md shows: its code is run as it stands there."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.tiny import talking_model

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.fixture
def shown(tmp_path: Path) -> ModuleType:
    """The code of the page as a module."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    file = tmp_path / "shown.py"
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("shown", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs(shown: ModuleType, tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 1000?", "answer": f"Add.\n#### {1000 + n:,}"} for n in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = {row["question"]: ["Add the two.", "Mind the carry."] for row in rows}
    task = shown.GSM8K(tmp_path / "test.jsonl", notes)
    task.max_new_tokens = 4
    question = task.questions()[2]
    assert (question.id, question.texts, question.answers) == ("q2", ["Add the two.", "Mind the carry."], ("1,002",))
    assert task.extract("First 7, then 1,002 in all.") == "1002" and task.extract("none") == ""
    assert [task.score(said, question)["accuracy"] for said in ("1002", "1001")] == [1.0, 0.0]
    assert 0 <= shown.run(talking_model(), task, tmp_path / "results") <= 1
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["questions"] == 3 and set(summary["methods"]) == {"text", "identity"}
