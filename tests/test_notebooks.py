"""The notebooks as they are committed: without outputs, ready for Colab, with code that is Python."""

from __future__ import annotations

import ast
import base64
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


def tags(cell: dict[str, Any]) -> list[str]:
    found: list[str] = cell["metadata"].get("tags", [])
    return found


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


def test_each_picture_of_the_documents_is_drawn_by_one_cell() -> None:
    drawn = [tag for path in NOTEBOOKS for cell in cells(path) for tag in tags(cell) if tag.startswith("picture:")]
    committed = sorted(path.stem for path in (ROOT / "docs" / "images").glob("*.png"))
    assert sorted(tag.removeprefix("picture:") for tag in drawn) == committed
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "".join(path.read_text(encoding="utf-8") for path in documents)
    assert set(re.findall(r"!\[[^]]+\]\((?:docs/)?images/([a-z_]+)\.png\)", text)) == set(committed)


class TestPictures:
    def test_takes_the_picture_of_a_tagged_cell(self) -> None:
        assert list(loaded("pictures").tagged_pictures({"cells": [drawing("picture:bars", 1), drawing("other", 1)]})) == [
            ("bars", b"PNG"),
        ]

    @pytest.mark.parametrize("count", [0, 2])
    def test_refuses_a_cell_without_one_picture(self, count: int) -> None:
        with pytest.raises(ValueError, match=f"bars drew {count} pictures"):
            list(loaded("pictures").tagged_pictures({"cells": [drawing("picture:bars", count)]}))


def drawing(tag: str, count: int) -> dict[str, Any]:
    output = {"data": {"image/png": base64.b64encode(b"PNG").decode()}}
    return {"metadata": {"tags": [tag]}, "outputs": [{"text": "printed"}, *[output] * count]}


def kernel_environment(environment: dict[str, str], device_files: Path) -> dict[str, str]:
    found: dict[str, str] = loaded("kernel_environment").kernel_environment(environment, device_files)
    return found


def imports(tree: ast.AST) -> list[ast.alias]:
    return [each for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for each in node.names]


def loaded(name: str) -> Any:
    """Return a module of launch/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        tagged = {tag: cell for cell in cells(path) for tag in tags(cell) if not tag.startswith("picture:")}
        assert set(tagged) == {"install", "parameters"}
        install = source(tagged["install"])
        before, _, inside = install.partition('if "google.colab" in sys.modules:\n')
        assert "%pip" not in before and "%pip install" in inside
        assert all(line.startswith("    ") for line in inside.splitlines() if line)
        assert [source(cell) for cell in cells(path) if "%pip" in source(cell)] == [install]

    def test_has_what_it_needs_without_the_install_cell(self, path: Path) -> None:
        """After a restart of the session that cell may be left out."""
        rest = [source(cell) for cell in cells(path) if cell["cell_type"] == "code" and "install" not in tags(cell)]
        tree = ast.parse("\n".join(rest))
        imported = {(each.asname or each.name).partition(".")[0] for each in imports(tree)}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        installing = {"importlib", "shutil", "sys", "Path"}
        assert used & installing <= imported

    def test_checks_the_devices(self, path: Path) -> None:
        assert any("check_devices()" in source(cell) for cell in cells(path))
