"""Write the "Open in Colab" badges of the notebooks, in the notebooks and in README.md.

    python launch/badges.py [--branch main] [--check]

Badges link to the repository that pyproject.toml names: [project.urls], key Repository.  While that is not set, nothing is
changed, and the exit code is 2.  --check changes nothing and exits with 1 if a file would change.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- Colab badges: begin -->", "<!-- Colab badges: end -->"
EXAMPLE = "https://github.com/OWNER/NAME"
_ADDRESS = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", re.ASCII)
_BRANCH = re.compile(r"[\w.-]+(?:/[\w.-]+)*", re.ASCII)
_PICTURE = "https://colab.research.google.com/assets/colab-badge.svg"
_FIRST_LINE = "[![Open in Colab]("  # how a badge in a notebook begins


class Wrong(Exception):
    """Something that the caller has to change, in one line."""


def repository(root: Path) -> str:
    """Return OWNER/NAME of the repository.  Raises `Wrong` where pyproject.toml names none, or none on GitHub."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository")
    if address is None:
        raise Wrong(f"pyproject.toml names no repository: set Repository in [project.urls], such as {EXAMPLE}")
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise Wrong(f"Repository in pyproject.toml must be like {EXAMPLE}, not {address!r}")
    return found[1]


def badge(place: str, branch: str, notebook: Path) -> str:
    """Return the badge of a notebook as Markdown."""
    link = f"https://colab.research.google.com/github/{place}/blob/{branch}/notebooks/{notebook.name}"
    return f"[![Open in Colab]({_PICTURE})]({link})"


def with_badge(notebook: Path, line: str) -> str:
    """Return the text of a notebook with a badge as the first line of its first text cell.

    Raises `Wrong` for a notebook without such a cell.
    """
    content: dict[str, Any] = json.loads(notebook.read_text(encoding="utf-8"))
    cell = next((each for each in content["cells"] if each["cell_type"] == "markdown"), None)
    if cell is None:
        raise Wrong(f"{notebook.name} has no text cell for a badge: add one at its top")
    text = "".join(cell["source"])
    if text.startswith(_FIRST_LINE):
        text = text.partition("\n")[2].lstrip("\n")
    cell["source"] = f"{line}\n\n{text}".splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def with_table(readme: Path, lines: dict[str, str]) -> str:
    """Return README with the badges between its two comments.  Raises `Wrong` where these are not there."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Wrong(f"{readme.name} has no lines {BEGIN} and {END}")
    rows = [f"| `{name}` | {line} |" for name, line in lines.items()]
    table = "\n".join(["| notebook | |", "| --- | --- |", *rows])
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def renewed(root: Path, branch: str) -> dict[Path, str]:
    """Return the files that carry badges, with the text that they must have.  Raises `Wrong`."""
    if _BRANCH.fullmatch(branch) is None:
        raise Wrong(f"--branch cannot be {branch!r}: give the name of a branch, such as main")
    place = repository(root)
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    lines = {path.stem: badge(place, branch, path) for path in notebooks}
    texts = {path: with_badge(path, lines[path.stem]) for path in notebooks}
    return texts | {root / "README.md": with_table(root / "README.md", lines)}


def main() -> int:
    """Write or check; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the Colab badges of the notebooks.")
    parser.add_argument("--branch", default="main", help="that the badges link to")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file would change")
    options = parser.parse_args()
    root = Path(__file__).parents[1]
    try:
        texts = renewed(root, options.branch)
    except Wrong as error:
        print(error, file=sys.stderr)
        return 2
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        print(f"{path.relative_to(root)}: {'would change' if options.check else 'written'}")
        if not options.check:
            path.write_text(texts[path], encoding="utf-8")
    return 1 if changed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
