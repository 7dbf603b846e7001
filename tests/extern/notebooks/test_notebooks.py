"""All notebooks, executed from start to end on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook_runs import NOTEBOOKS, ROOT, execute, run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path) -> None:
    print(execute(path, tmp_path / path.name))


def test_what_does_not_fit_is_a_result(tmp_path: Path) -> None:
    settings = ('SLICES=["v5e-4"]', "TRAIN_SLICES=[]", "BRANCHES=64", "BRANCH_TOKENS=8192")
    done = run(ROOT / "notebooks" / "scale_out.ipynb", tmp_path / "scale_out.ipynb", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "scale_out.ipynb").read_text(encoding="utf-8").count("does not fit; ") > 3
