"""Write launch/constraints.txt again, with the newest versions that pyproject.toml allows.

    python launch/renew_constraints.py

On each supported Python, pip resolves every extra in an empty environment and installs nothing.  Where the Pythons get
different versions of a package, its lines have markers.  Needs the network, and one Python of each version.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "launch" / "constraints.txt"
PYTHONS = ("3.11", "3.12", "3.13")
NOT_ON = {"3.11": {"test"}}  # what launch/setup.sh does not offer there
NOT_PINNED = {"pip", "psynth-jax", "setuptools"}


def extras_on(version: str) -> list[str]:
    """Return the extras that launch/setup.sh installs on this Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return sorted(set(project["optional-dependencies"]) - NOT_ON.get(version, set()))


def resolve(version: str, folder: Path) -> dict[str, str]:
    """Return the version of each package that pip would install on this Python.

    Raises CalledProcessError when there is no such Python, or when pip finds no versions that fit.
    """
    found = subprocess.run(
        ["bash", str(ROOT / "launch" / "find_python.sh"), version], check=True, stdout=subprocess.PIPE, text=True
    )
    environment, report = folder / version, folder / f"{version}.json"
    subprocess.run([found.stdout.strip(), "-m", "venv", str(environment)], check=True)
    asked = f"{ROOT}[{','.join(extras_on(version))}]"
    print(f"Python {version}: resolving {asked}", file=sys.stderr, flush=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--dry-run", "--report", str(report)]
    subprocess.run([str(environment / "bin" / "python"), "-m", "pip", "install", *options, asked], check=True)
    packages = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    versions = {}
    for package in packages:
        name = re.sub(r"[-_.]+", "-", package["name"]).lower()
        if name not in NOT_PINNED:
            # "2.13.0+cpu" is how one index builds 2.13.0
            versions[name] = package["version"].partition("+")[0]
    print(f"Python {version}: {len(versions)} packages", file=sys.stderr, flush=True)
    return versions


def marker(pythons: list[str]) -> str:
    """Return the environment marker that selects these of PYTHONS, where they are not all."""
    first, last = PYTHONS.index(pythons[0]), PYTHONS.index(pythons[-1])
    if pythons == list(PYTHONS[: last + 1]):
        return f'python_version < "{PYTHONS[last + 1]}"'
    if pythons == list(PYTHONS[first:]):
        return f'python_version >= "{pythons[0]}"'
    return " or ".join(f'python_version == "{version}"' for version in pythons)


def merged(resolved: dict[str, dict[str, str]]) -> list[str]:
    """Return the lines of the file, from the versions of each package on each Python."""
    lines = []
    for name in sorted(set().union(*resolved.values())):
        pythons_of: dict[str, list[str]] = {}
        for python, versions in resolved.items():
            if name in versions:
                pythons_of.setdefault(versions[name], []).append(python)
        for version, pythons in pythons_of.items():
            if len(pythons_of) == 1:
                lines.append(f"{name}=={version}\n")
            else:
                lines.append(f"{name}=={version} ; {marker(pythons)}\n")
    return lines


def main() -> int:
    """Resolve and write; print what changed."""
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            resolved = {version: resolve(version, Path(folder)) for version in PYTHONS}
        except subprocess.CalledProcessError as error:
            print(f"{CONSTRAINTS.name} is as it was: {error}", file=sys.stderr)
            return 1
    before = []
    if CONSTRAINTS.exists():
        before = CONSTRAINTS.read_text(encoding="utf-8").splitlines(keepends=True)
    after = merged(resolved)
    CONSTRAINTS.write_text("".join(after), encoding="utf-8")
    sys.stderr.writelines(difflib.unified_diff(before, after, "before", "after", n=0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
