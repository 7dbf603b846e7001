"""All notebooks, executed from start to end on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook_runs import NOTEBOOKS, execute


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path) -> None:
    print(execute(path, tmp_path / path.name))
