"""Where the public data sets lie that tests of whole files read; not every checkout has them."""

from __future__ import annotations

from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[4] / "shared" / "data"


def shared(file: str) -> str:
    """Return the path of a file; skip the test where it is absent."""
    path = _FOLDER / file
    if not path.is_file():
        pytest.skip(f"there is no {file} next to the checkout")
    return str(path)
