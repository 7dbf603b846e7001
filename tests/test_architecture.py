"""The structure that the design promises: import directions, what an import costs, sizes and names of files."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "psynth_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MAX_FILE_LINES = 520
MAX_FUNCTION_LINES = 75


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def loaded_by(statement: str) -> set[str]:
    """Run a statement in a new interpreter and return the top-level modules that it has loaded."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_of_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import psynth_jax")
    assert "psynth_jax" in loaded
    assert not loaded & {"torch", "transformers", "tokenizers", "huggingface_hub", "gguf", "typer", "accelerate", "peft"}


def test_public_names_are_what_the_package_says() -> None:
    import psynth_jax

    for name in psynth_jax.__all__:
        assert getattr(psynth_jax, name, None) is not None, name


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=relative)
def test_file_is_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_FILE_LINES, f"{relative(path)} has {lines} lines: it holds more than one idea"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions_are_short(path: Path) -> None:
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1}"
        for node in functions
        if node.end_lineno and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=relative)
def test_file_has_the_name_of_a_concept(path: Path) -> None:
    assert not {"util", "utils", "common", "helper", "helpers", "misc"} & set(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_code_from_a_hub_is_run(path: Path) -> None:
    """Transformers asks on the terminal, and runs it, unless it is told not to."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    loads = [n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "from_pretrained"]
    trusts = [keyword for node in loads for keyword in node.keywords if keyword.arg == "trust_remote_code"]
    assert len(trusts) == len(loads), "every from_pretrained says trust_remote_code=False"
    assert all(isinstance(keyword.value, ast.Constant) and keyword.value.value is False for keyword in trusts)


class TestImportContracts:
    """The contracts in pyproject.toml hold, and each of them notices the mistake that it is there for."""

    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        pytest.importorskip("importlinter", reason="import-linter comes with the extra `test`")
        shutil.copytree(PACKAGE, tmp_path / "psynth_jax", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
        return tmp_path

    @staticmethod
    def lint(checkout: Path) -> subprocess.CompletedProcess[str]:
        code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
        return subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)

    def test_hold(self, checkout: Path) -> None:
        done = self.lint(checkout)
        assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize(
        ("module", "statement", "contract"),
        [
            ("config.py", "import psynth_jax.cache", "Imports go down only"),
            ("ops/rope.py", "import psynth_jax.config", "Operations take arrays"),
            ("cache.py", "import torch", "Torch is an oracle"),
            ("unplaced.py", "", "Imports go down only"),
        ],
    )
    def test_notice(self, checkout: Path, module: str, statement: str, contract: str) -> None:
        with (checkout / "psynth_jax" / module).open("a") as file:
            file.write(f"\n{statement}\n")
        done = self.lint(checkout)
        assert done.returncode != 0
        assert any(contract in line and "BROKEN" in line for line in done.stdout.splitlines()), done.stdout

    def test_top_packages_are_independent(self, checkout: Path) -> None:
        for name, statement in {"training": "import psynth_jax.serving", "serving": ""}.items():
            (checkout / "psynth_jax" / name).mkdir(exist_ok=True)
            with (checkout / "psynth_jax" / name / "__init__.py").open("a") as file:
                file.write(f'"""A package at the top."""\n{statement}\n')
        done = self.lint(checkout)
        assert done.returncode != 0
        assert "psynth_jax.training is not allowed to import psynth_jax.serving" in done.stdout


class TestFixtures:
    """What conftest.py promises to all other tests."""

    def test_eight_devices_in_single_precision(self) -> None:
        if jax.default_backend() != "cpu":
            pytest.skip("JAX_PLATFORMS asks for a real device; eight are promised on the CPU only")
        assert jax.device_count() == 8
        assert jnp.asarray(1.0).dtype == jnp.float32

    def test_compilations_are_counted(self, count_compilations) -> None:
        increment = jax.jit(lambda x: x + 1)
        value = jnp.zeros(7)
        with count_compilations() as first:
            increment(value)
        with count_compilations() as second:
            increment(value)
        assert (first.count, second.count) == (1, 0)
        assert "lambda" in first.names[0]
