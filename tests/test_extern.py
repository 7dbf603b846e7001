"""What pyproject.toml, launch/constraints.txt and tests/extern say, as far as nothing has to be installed to know it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
TIERS = sorted(path for path in (ROOT / "tests" / "extern").iterdir() if path.name != "__pycache__")
PYTHONS = ("3.11", "3.12", "3.13")


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def bounded(texts: list[str]) -> list[Requirement]:
    """Return the requirements on other packages; `psynth-jax[...]` names extras of our own."""
    found = [Requirement(text) for text in texts]
    return [requirement for requirement in found if requirement.name != PROJECT["name"]]


ALL = bounded([*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)])
# What the newest and the oldest tested versions are written down for.
USED = bounded([*PROJECT["dependencies"], *EXTRAS["notebooks"], *EXTRAS["test-light"]])


@pytest.mark.parametrize("requirement", ALL, ids=str)
def test_requirement_has_a_lower_and_an_upper_bound(requirement: Requirement) -> None:
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators in ({">=", "<"}, {"~="}, {"=="})


class TestConstraints:
    PINS = tuple(Requirement(line) for line in lines(ROOT / "launch" / "constraints.txt"))

    def test_are_names_and_versions_and_nothing_else(self) -> None:
        for line in lines(ROOT / "launch" / "constraints.txt"):
            assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; python_version (<|>=|==) \"3\.1\d\")?", line), line

    @pytest.mark.parametrize("python", PYTHONS)
    def test_pin_each_package_once_on_each_python(self, python: str) -> None:
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        here = [pin for pin in self.PINS if pin.marker is None or pin.marker.evaluate(environment)]
        assert len({pin.name for pin in here}) == len(here)

    @pytest.mark.parametrize("requirement", ALL, ids=str)
    def test_are_within_the_bounds(self, requirement: Requirement) -> None:
        pins = [pin for pin in self.PINS if pin.name == canonicalize_name(requirement.name)]
        assert pins
        for pin in pins:
            (specifier,) = pin.specifier
            assert requirement.specifier.contains(specifier.version)


class TestMetadata:
    """Of the distribution that is installed, which the wheel has too."""

    def test_command(self) -> None:
        (command,) = distribution("psynth-jax").entry_points.select(group="console_scripts")
        assert (command.group, command.name, command.value) == ("console_scripts", "psynth", "psynth_jax.cli:main")

    def test_version_is_that_of_the_package(self) -> None:
        from psynth_jax import __version__

        assert distribution("psynth-jax").version == __version__

    def test_extras(self) -> None:
        assert set(EXTRAS) >= {"tpu", "cuda", "notebooks"}
        assert set(distribution("psynth-jax").metadata.get_all("Provides-Extra") or ()) == set(EXTRAS)


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
class TestTier:
    def test_has_requirements_and_tests(self, tier: Path) -> None:
        assert list(tier.glob("test_*.py"))
        assert lines(tier / "requirements.txt")

    def test_requirements_can_be_read(self, tier: Path) -> None:
        for line in lines(tier / "requirements.txt"):
            option, _, value = line.partition(" ")
            if option == "-c":
                assert (tier / value).is_file()
            elif option == "-e":
                extras = re.fullmatch(r"\.\[([\w,-]+)\]", value)
                assert extras, line
                assert set(extras[1].split(",")) <= set(EXTRAS)
            else:
                assert Requirement(line).specifier, line

    def test_installs_what_the_tests_share(self, tier: Path) -> None:
        """tests/conftest.py needs JAX, and pytest; a tier with a pytest.ini of its own does not load it."""
        if (tier / "pytest.ini").exists():
            assert [line for line in lines(tier / "requirements.txt") if line.startswith("pytest")]
            return
        assert [line for line in lines(tier / "requirements.txt") if line.startswith("-e .[") and "test-light" in line]


def test_lowest_tier_has_the_lower_bounds() -> None:
    lower = {
        f"{canonicalize_name(requirement.name)}=={specifier.version}"
        for requirement in USED
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    assert set(lines(ROOT / "tests" / "extern" / "lowest" / "lowest.txt")) == lower


def collected(*arguments: str) -> int:
    """Return the exit code of a pytest that only collects."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True).returncode


def test_tiers_run_only_when_they_are_named() -> None:
    others = [f"--ignore={path}" for path in (ROOT / "tests").iterdir() if path.name not in ("extern", "conftest.py")]
    assert collected(*others) == pytest.ExitCode.NO_TESTS_COLLECTED
    assert collected("tests/extern/notebooks") == pytest.ExitCode.OK
