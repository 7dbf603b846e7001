"""Small files of rows in the forms that data sets are passed around in."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMS = ("rows.jsonl", "rows.jsonl.gz", "rows.json")


def written(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows to a file in the form that its name tells; return its path."""
    path = folder / name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".json"):
        path.write_text(json.dumps(list(rows), indent=1))
    elif name.endswith(".csv"):
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text(lines)
    return str(path)
