"""launch/badges.py on a copy: badges for the repository that pyproject.toml names, and none without it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADDRESS = "https://github.com/OWNER/NAME"
LINK = "https://colab.research.google.com/github/OWNER/NAME/blob/{branch}/notebooks/{name}.ipynb"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
URLS = re.compile(r"^\[project\.urls\]\n(?:(?!\[).*\n)*", re.MULTILINE)
# What this project itself may have by now.
NOTEBOOK_BADGE = re.compile(r'^ *"\[!\[Open in Colab\].*\n *"\\n",\n', re.MULTILINE)
TABLE = re.compile(r"(<!-- Colab badges: begin -->\n).*?(<!-- Colab badges: end -->)", re.DOTALL)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout of the files that matter, with a made-up repository and without badges."""
    for folder in ("launch", "notebooks"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "launch" / "badges.py", tmp_path / "launch")
    for path in NOTEBOOKS:
        (tmp_path / "notebooks" / path.name).write_text(NOTEBOOK_BADGE.sub("", path.read_text()))
    table = TABLE.sub(r"\1\2", (ROOT / "README.md").read_text())
    (tmp_path / "README.md").write_text(table)
    name_repository(tmp_path, ADDRESS)
    return tmp_path


def name_repository(checkout: Path, address: str | None) -> None:
    """Copy this project's pyproject.toml, with another repository, or none."""
    text = URLS.sub("", (ROOT / "pyproject.toml").read_text())
    if address is not None:
        text += f'\n[project.urls]\nRepository = "{address}"\n'
    (checkout / "pyproject.toml").write_text(text)


def badges(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(checkout / "launch" / "badges.py"), *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def texts(checkout: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (*checkout.glob("notebooks/*"), checkout / "README.md")}


def first_cell(notebook: str) -> str:
    cell = json.loads(notebook)["cells"][0]
    assert cell["cell_type"] == "markdown"
    return "".join(cell["source"])


def test_writes_a_badge_into_each_notebook_and_readme(copy: Path) -> None:
    before = texts(copy)
    done = badges(copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(NOTEBOOKS) + 1
    after = texts(copy)
    for name, text in after.items():
        if name == "README.md":
            continue
        link = LINK.format(branch="main", name=name.removesuffix(".ipynb"))
        line, _, rest = first_cell(text).partition("\n\n")
        assert line == f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"
        assert rest == first_cell(before[name])
        assert f"({link})" in after["README.md"]
        assert json.loads(text)["cells"][1:] == json.loads(before[name])["cells"][1:]


def test_adds_lines_and_changes_no_other(copy: Path) -> None:
    before = texts(copy)
    badges(copy)
    for name, text in texts(copy).items():
        kept = [line for line in text.splitlines() if "colab-badge" not in line]
        gone = [line for line in before[name].splitlines() if line not in kept]
        assert gone == []


def test_a_second_run_changes_nothing(copy: Path) -> None:
    badges(copy)
    before = texts(copy)
    done = badges(copy)
    assert (done.returncode, done.stdout) == (0, "")
    assert texts(copy) == before


def test_another_branch_replaces_the_badges(copy: Path) -> None:
    badges(copy)
    assert badges(copy, "--branch", "releases/1.0").returncode == 0
    after = texts(copy)
    link = LINK.format(branch="releases/1.0", name="quickstart")
    assert first_cell(after["quickstart.ipynb"]).count("colab-badge") == 1
    assert link in after["quickstart.ipynb"] and link in after["README.md"]
    assert "/blob/main/" not in after["README.md"]


def test_check_tells_and_changes_nothing(copy: Path) -> None:
    before = texts(copy)
    done = badges(copy, "--check")
    assert done.returncode == 1
    assert "notebooks/quickstart.ipynb: would change" in done.stdout.splitlines()
    assert texts(copy) == before
    badges(copy)
    assert badges(copy, "--check").returncode == 0
    assert badges(copy, "--check", "--branch", "other").returncode == 1


@pytest.mark.parametrize("address", [f"{ADDRESS}/", f"{ADDRESS}.git"])
def test_other_spellings_of_the_address(copy: Path, address: str) -> None:
    name_repository(copy, address)
    assert badges(copy).returncode == 0
    assert LINK.format(branch="main", name="quickstart") in (copy / "README.md").read_text()


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_without_an_address_nothing_changes(copy: Path, check: list[str]) -> None:
    badges(copy)
    before = texts(copy)
    name_repository(copy, None)
    done = badges(copy, *check)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "pyproject.toml names no repository: set Repository in [project.urls], such as https://github.com/OWNER/NAME"
    ]
    assert texts(copy) == before


@pytest.mark.parametrize("address", ["https://gitlab.com/OWNER/NAME", "https://github.com/OWNER", "OWNER/NAME"])
def test_an_address_that_colab_cannot_open(copy: Path, address: str) -> None:
    name_repository(copy, address)
    done = badges(copy)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "must be like https://github.com/OWNER/NAME" in done.stderr and address in done.stderr


def test_a_branch_that_is_none(copy: Path) -> None:
    done = badges(copy, "--branch", "a b")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--branch" in done.stderr


def test_a_readme_without_a_place_for_badges(copy: Path) -> None:
    (copy / "README.md").write_text("# psynth_jax\n")
    before = texts(copy)
    done = badges(copy)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "README.md has no lines" in done.stderr
    assert texts(copy) == before
