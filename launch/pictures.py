"""Copy pictures of executed notebooks into docs/images, for README.md and docs/.

    bash launch/notebooks.sh && python launch/pictures.py

A cell with the tag "picture:NAME" draws docs/images/NAME.png.  Notebooks that are not in notebooks/executed are left out.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PREFIX = "picture:"


def tagged_pictures(notebook: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield name and PNG of every cell that is tagged.  Raises ValueError for one that drew no single picture."""
    for cell in notebook["cells"]:
        names = [tag.removeprefix(PREFIX) for tag in cell["metadata"].get("tags", ()) if tag.startswith(PREFIX)]
        if not names:
            continue
        drawn = [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]
        if len(names) != 1 or len(drawn) != 1:
            raise ValueError(f"the cell tagged {', '.join(names)} drew {len(drawn)} pictures")
        yield names[0], base64.b64decode("".join(drawn[0]))


def main() -> int:
    """Write the pictures; return the exit code: 1 if there was none."""
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.parse_args()
    count = 0
    for path in sorted((ROOT / "notebooks" / "executed").glob("*.ipynb")):
        for name, png in tagged_pictures(json.loads(path.read_text(encoding="utf-8"))):
            target = ROOT / "docs" / "images" / f"{name}.png"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(png)
            print(f"{target.relative_to(ROOT)}: {len(png):,} bytes, from {path.name}")
            count += 1
    if count == 0:
        print("no picture in notebooks/executed: launch/notebooks.sh draws them", file=sys.stderr)
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
