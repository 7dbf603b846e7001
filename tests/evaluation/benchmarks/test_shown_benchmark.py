"""What docs/benchmarks.md shows: the benchmark is run as it stands there, and its table is that of the code."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from psynth_jax.errors import DataError
from psynth_jax.evaluation.benchmarks import registry

PAGE = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
ROW = {"ID": "chal-1", "Body": "Ann has 3 hats.", "Question": "How many are 2 more?", "Answer": 5.0}


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The code of the page as a module, declared as an entry point."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    file = tmp_path / "shown.py"
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("shown", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "shown", module)
    point = importlib.metadata.EntryPoint("svamp", "shown:SVAMP", registry.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    return module


def test_runs(shown: ModuleType, tmp_path: Path) -> None:
    rows = [ROW | {"Answer": "5.0"}, ROW | {"ID": "chal-2", "Answer": 7}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = registry.benchmark("svamp", str(tmp_path / "rows.jsonl"))
    first, second = task.questions()
    assert (first.id, first.answers, second.answers) == ("chal-1", ("5.0",), ("7",))
    assert first.query.startswith("Ann has 3 hats. How many are 2 more?\n\nEnd with")
    assert task.judged(r"\boxed{5}", first) == ("5", {"accuracy": 1.0})
    assert task.vote_key("five, or 5.0", first) == "5"


def test_errors(shown: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW | {"Body": None}) + "\n")
    with pytest.raises(DataError) as caught:
        registry.benchmark("svamp", str(path)).questions()
    assert str(caught.value) == f"{path}:1: the row lacks the field 'Body'"


def test_the_table_names_data_sets_and_commits() -> None:
    for name in ("gsm8k", "aime24", "aime25", "gpqa", "medqa", "humaneval_plus", "mbpp_plus"):
        (line,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
        hub = registry.benchmark(name).hub
        assert hub is not None and f"`{hub.name}`" in line and hub.split in line
        assert (hub.revision or "the newest") in line and (hub.config or "") in line
