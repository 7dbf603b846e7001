"""On an image without the further packages: packed where there is a network, all runs from the archives alone.

requirements.txt is what launch/gpu_wheels.txt takes an image to have; later versions of typer bring pydantic.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ABSENT = ("array_record", "grain", "gguf", "pydantic", "tensorboardX")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout next to nothing: no environment, nothing packed."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "launch", "psynth_jax"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(checkout: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [checkout / "launch" / script, *words],
        env=clean | {"PSYNTH_PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_the_image_lacks_what_is_packed() -> None:
    assert [name for name in ABSENT if importlib.util.find_spec(name)] == []
    assert sys.version_info[:2] == (3, 12)


@pytest.mark.parametrize("script", ["adapter.sh", "gpu_check.sh"])
def test_without_archives_it_says_what_is_missing(checkout: Path, script: str) -> None:
    done = run(checkout, script, "--miniature")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "lacks array_record, gguf, grain, pydantic, tensorboardX: run launch/pack.sh" in line


@pytest.fixture(scope="module")
def packed(checkout: Path) -> list[Path]:
    done = run(checkout, "pack.sh")
    assert done.returncode == 0, done.stderr
    pieces = sorted((checkout / "pack").glob("*.tar-*"))
    assert [piece.name for piece in pieces] == [
        *("weights.tar-1-of-2", "weights.tar-2-of-2", "wheels.tar-1-of-1"),
    ]
    assert all(piece.stat().st_size <= 60 << 20 for piece in pieces)
    return pieces


@pytest.mark.parametrize("reads", ["branches", "text"])
def test_trains_in_miniature(checkout: Path, packed: list[Path], reads: str) -> None:
    done = run(checkout, "adapter.sh", "--miniature", "--reads", reads)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert (line["step"], line["reason"], line["packages"]["jax"]) == (6, "done", "0.11.2")


def test_checks_the_gpu_in_miniature(checkout: Path, packed: list[Path]) -> None:
    done = run(checkout, "gpu_check.sh", "--miniature", "--into", str(checkout / "checked"))
    assert done.returncode == 0, done.stderr
    assert json.loads((checkout / "checked" / "gpu_check.json").read_text())


def test_the_demo_model_is_there(checkout: Path, packed: list[Path]) -> None:
    path = f"{checkout}:{checkout / '.gpu' / 'site'}"
    command = [sys.executable, "-m", "psynth_jax", "info", "smollm2-135m", "--json"]
    offline = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=offline, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
