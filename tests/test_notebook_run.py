"""One notebook, executed from start to end, and one that fails; tests/extern/notebooks executes them all."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.notebook_runs import ROOT, execute, run

pytestmark = pytest.mark.skipif(importlib.util.find_spec("nbclient") is None, reason="nbclient is not installed")


@pytest.mark.slow
def test_quickstart_runs_and_draws(tmp_path: Path) -> None:
    executed = tmp_path / "quickstart.ipynb"
    assert "quickstart.ipynb: " in execute(ROOT / "notebooks" / "quickstart.ipynb", executed)
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_a_kernel_that_dies_ends_the_execution(tmp_path: Path) -> None:
    source, executed = tmp_path / "dies.ipynb", tmp_path / "executed.ipynb"
    cells = [_code("print('begun')"), _code("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")]
    source.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    done = run(source, executed)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("the kernel died")
    assert "Traceback" not in done.stderr
    assert "begun" in executed.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["STEPS=3"], "no parameter STEPS; there are LEFT, NAME, RIGHT"),
        (["NAME"], "'NAME' is not NAME=VALUE"),
    ],
)
def test_a_wrong_parameter_is_one_line(tmp_path: Path, settings: list[str], message: str) -> None:
    done = run(_with_parameters(tmp_path), tmp_path / "executed.ipynb", *settings)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_parameters_are_literals_or_texts(tmp_path: Path) -> None:
    executed = tmp_path / "executed.ipynb"
    done = run(_with_parameters(tmp_path), executed, "NAME=None", "LEFT=3e-3", "RIGHT=tiny-random")
    assert done.returncode == 0, done.stderr
    assert "None 0.003 'tiny-random'" in executed.read_text(encoding="utf-8")


def _with_parameters(folder: Path) -> Path:
    parameters = _code("NAME = 'a'\nLEFT, RIGHT = 1, 2") | {"metadata": {"tags": ["parameters"]}}
    notebook = {"cells": [parameters, _code("print(repr(NAME), repr(LEFT), repr(RIGHT))")], "metadata": {}}
    path = folder / "notebook.ipynb"
    path.write_text(json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 5}))
    return path


def _code(source: str) -> dict[str, object]:
    cell = {"cell_type": "code", "id": f"cell-{len(source)}", "metadata": {}, "outputs": [], "source": source}
    return cell | {"execution_count": None}
