"""The notebooks as they are committed: without outputs, ready for Colab, with code that is Python."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_there_are_some() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {
        *("convert", "method_by_hand", "own_data", "quickstart", "scale_out", "train_adapter"),
    }


def test_badges_are_those_of_the_repository() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if "Repository" in project.get("urls", {}):
        command = [sys.executable, "-I", str(ROOT / "launch" / "badges.py"), "--check"]
        assert subprocess.run(command, stdin=subprocess.DEVNULL).returncode == 0
        return
    for path in (*NOTEBOOKS, ROOT / "README.md"):
        assert "colab-badge.svg" not in path.read_text(encoding="utf-8")


def kernel_environment(environment: dict[str, str], device_files: Path) -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("kernel_environment", ROOT / "launch" / "kernel_environment.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str] = module.kernel_environment(environment, device_files)
    return found


class TestKernelEnvironment:
    def test_without_an_accelerator_there_are_eight_devices_and_no_hub(self, tmp_path: Path) -> None:
        found = kernel_environment({"PATH": "/bin"}, tmp_path)
        assert found == {
            "PATH": "/bin",
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "8",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }

    @pytest.mark.parametrize("device", ["accel0", "vfio/0", "nvidia0"])
    def test_an_accelerator_is_used(self, tmp_path: Path, device: str) -> None:
        (tmp_path / device).parent.mkdir(exist_ok=True)
        (tmp_path / device).touch()
        assert "JAX_PLATFORMS" not in kernel_environment({}, tmp_path)

    def test_what_the_user_sets_stays(self, tmp_path: Path) -> None:
        given = {"JAX_NUM_CPU_DEVICES": "2", "HF_HUB_OFFLINE": "0", "JAX_PLATFORMS": "cuda"}
        found = kernel_environment(given, tmp_path)
        assert {name: found[name] for name in given} == given


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_asks_colab_for_a_tpu(self, path: Path) -> None:
        metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
        assert (metadata["accelerator"], metadata["gpuType"], metadata["colab"]["gpuType"]) == ("TPU", "V5E1", "V5E1")

    def test_has_no_outputs(self, path: Path) -> None:
        code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
        assert code
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)

    def test_code_is_python_with_magics(self, path: Path) -> None:
        for cell in cells(path):
            if cell["cell_type"] == "code":
                ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", source(cell), flags=re.MULTILINE))

    def test_installs_in_colab_only_and_has_one_cell_of_parameters(self, path: Path) -> None:
        tagged = {tag: cell for cell in cells(path) for tag in cell["metadata"].get("tags", ())}
        assert set(tagged) == {"install", "parameters"}
        install = source(tagged["install"])
        before, _, inside = install.partition('if "google.colab" in sys.modules:\n')
        assert "%pip" not in before and "%pip install" in inside
        assert all(line.startswith("    ") for line in inside.splitlines() if line)
        assert [source(cell) for cell in cells(path) if "%pip" in source(cell)] == [install]

    def test_checks_the_devices(self, path: Path) -> None:
        assert any("check_devices()" in source(cell) for cell in cells(path))
