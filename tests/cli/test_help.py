"""Help, version and completion are there at once, without JAX; the names that help lists are the library's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from psynth_jax.branch import PositionMode
from psynth_jax.cache import CACHE_DTYPES
from psynth_jax.cli import commands, options
from psynth_jax.convert.rules import DTYPES
from psynth_jax.data.prepare import known_sources
from psynth_jax.evaluation.benchmarks.registry import _OURS
from psynth_jax.evaluation.methods import METHODS
from psynth_jax.nn.layer_forms import Layers
from psynth_jax.ops.branch_attention import Implementation
from psynth_jax.ops.branch_attention.cases import MODELS
from psynth_jax.presets import PRESETS
from tests.cli.conftest import Command

ROOT = Path(__file__).parents[2]
HEAVY = "jax jaxlib flax numpy transformers orbax grain matplotlib pyarrow optax gguf safetensors huggingface_hub"
ALL = [
    "", "run", "train", "export", "eval", "score", "compile", "convert", "merge", "push", "pull", "info",
    "bench", "bench ttft", "bench decode", "bench kernel", "bench error", "bench train",
    "report", "report train", "report eval", "data", "data attempts", "data prepare", "data show", "data info",
    "sandbox", "sandbox check", "sandbox run",
]  # fmt: skip
SAYS_WHAT_IS_LOADED = "import atexit, sys; atexit.register(lambda: sys.stderr.write(' '.join(sys.modules))); "


def test_help_imports_nothing_heavy() -> None:
    """All of them in one process: every module with options has been imported by then."""
    code = SAYS_WHAT_IS_LOADED + "from psynth_jax.cli.commands import app\n"
    for command in ALL:
        code += f"app({[*command.split(), '--help']!r}, prog_name='psynth', standalone_mode=False)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "typer" in loaded
    assert not loaded & {*HEAVY.split()}


def test_what_comes_before_the_signals_are_heard() -> None:
    code = SAYS_WHAT_IS_LOADED + "from psynth_jax.cli import main"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {name for name in done.stderr.split() if name.startswith("psynth_jax")}
    assert ours == {"psynth_jax", "psynth_jax.cli", "psynth_jax.cli.interrupts"}
    assert not {"typing", "pathlib", "typer", "rich"} & {*done.stderr.split()}


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", ALL)
def test_both_spellings_of_help(psynth: Command, command: str, option: str) -> None:
    done = psynth(*command.split(), option)
    assert (done.code, done.err) == (0, "")
    assert f"Usage: psynth {command}".rstrip() in " ".join(done.out.split())


def test_every_command_is_listed_here() -> None:
    named = {command.name for command in commands.app.registered_commands}
    named |= {group.name for group in commands.app.registered_groups}
    assert named == {command.split()[0] for command in ALL if command}


def test_version(psynth: Command) -> None:
    import psynth_jax

    assert psynth("--version").out == f"psynth {psynth_jax.__version__}\n"


@pytest.mark.parametrize("module", ["psynth_jax", "psynth_jax.cli"])
def test_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.startswith("psynth ")


def test_completion() -> None:
    environment = {**os.environ, "_PSYNTH_COMPLETE": "complete_bash", "COMP_WORDS": "psynth ben", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "psynth_jax"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["bench"]


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        (options.DTYPES.replace(" or ", ", "), DTYPES),
        (options.CACHE_DTYPES, CACHE_DTYPES),
        (options.POSITIONS.replace(" or ", ", "), get_args(PositionMode)),
        (options.IMPLEMENTATIONS, get_args(Implementation)),
        (options.LAYERS, get_args(Layers)),
        (options.ATTENTION_SHAPES, MODELS),
        (options.METHODS, [*METHODS, "recompute:K"]),
        (options.BENCHMARKS, _OURS),
        (options.PRESETS, PRESETS),
        (options.SOURCES, known_sources()),
    ],
)
def test_names_are_those_of_the_library(listed: str, names: object) -> None:
    assert sorted(listed.split(", ")) == sorted(names)  # type: ignore[call-overload]


@pytest.mark.parametrize("statement", ["import psynth_jax", "from psynth_jax import load_model, ParallelSynthesis"])
def test_what_an_import_loads(statement: str) -> None:
    code = SAYS_WHAT_IS_LOADED + statement
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    heavy = {"transformers", "orbax", "grain", "matplotlib", "pyarrow", "typer", "torch"}
    assert not loaded & (heavy | ({"jax", "flax", "numpy"} if statement == "import psynth_jax" else set()))


def test_public_names_are_there_when_they_are_asked_for() -> None:
    import psynth_jax

    assert {*psynth_jax._HOMES} == {*psynth_jax.__all__} <= {*dir(psynth_jax)}
    for name, home in psynth_jax._HOMES.items():
        assert getattr(psynth_jax, name).__module__.startswith("psynth_jax"), home
    with pytest.raises(AttributeError, match="has no attribute 'load_modle'"):
        _ = psynth_jax.load_modle


def test_type_checkers_see_the_same_names() -> None:
    import ast

    import psynth_jax

    tree = ast.parse((ROOT / "psynth_jax" / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    found = {name.name: node.module for node in imports for name in node.names if name.name in psynth_jax._HOMES}
    assert found == {name: f"psynth_jax.{home}" for name, home in psynth_jax._HOMES.items()}


def test_nothing_is_said_of_torch_that_is_missing() -> None:
    """Transformers advises to install it, wherever it is imported; its other messages stay."""
    code = "import psynth_jax.tokenizer, logging\nlog = logging.getLogger('transformers')\n"
    code += "log.warning('PyTorch was not found. Models will not be available.')\nlog.warning('something else')\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "PyTorch" not in done.stderr and "something else" in done.stderr
