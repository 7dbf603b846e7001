"""The good files, and a way to run commands on them in this process."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import jax
import pytest
import typer
from jax.experimental.compilation_cache import compilation_cache

from psynth_jax import cli
from tests.fuzz.harness import Command, Place, Said, unpack

# The module that has the command line; the package itself, or one of its own.
APP = importlib.import_module(
    "psynth_jax.cli.commands" if importlib.util.find_spec("psynth_jax.cli.commands") else cli.__name__
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The good files, and a folder for what is made of them."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "out").mkdir()
    return Place(unpack(folder / "tree"), folder / "out")


@pytest.fixture(scope="session")
def built() -> Any:
    """The command line, built once: to build it takes longer than most commands do."""
    return typer.main.get_command(APP.app)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: Place, built: Any
) -> Iterator[Command]:
    """Run `psynth ARGUMENTS` in the folder of the good files; its cache folder is there, too."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    cache = place.tree.parent / "cache"
    cache.mkdir(exist_ok=True)
    monkeypatch.setenv("PSYNTH_CACHE", str(cache))
    monkeypatch.setattr("tempfile.tempdir", str(place.tree.parent))
    monkeypatch.delenv("PSYNTH_DEBUG", raising=False)
    monkeypatch.setattr(APP, "app", built)
    monkeypatch.chdir(place.tree)

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["psynth", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 1, captured.out, captured.err)

    yield run
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
