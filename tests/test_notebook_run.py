"""One notebook, executed from start to end; tests/extern/notebooks executes them all."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.notebook_runs import ROOT, execute

pytestmark = pytest.mark.skipif(importlib.util.find_spec("nbclient") is None, reason="nbclient is not installed")


def test_quickstart_runs_and_draws(tmp_path: Path) -> None:
    executed = tmp_path / "quickstart.ipynb"
    assert "quickstart.ipynb: " in execute(ROOT / "notebooks" / "quickstart.ipynb", executed)
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    assert not [output for output in outputs if output["output_type"] == "error"]
