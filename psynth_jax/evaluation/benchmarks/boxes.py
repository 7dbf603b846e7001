r"""The contents of \boxed{...}, with braces inside of it.

so \boxed{\frac{1}{2}} or \boxed{7
          └──────────┘           └ never closed: no box
"""

from __future__ import annotations

import re

# A box that opens, an escaped character (\{ and \} open and close nothing), a brace.
_PIECE = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)


def boxes(text: str) -> list[str]:
    """Return the contents of all boxes, in the order in which they open; they may be nested."""
    found: dict[int, str] = {}
    # Where the content of each open brace begins; None for a brace that is no box's.
    opened: list[int | None] = []
    for piece in _PIECE.finditer(text):
        if piece["box"]:
            opened.append(piece.end())
        elif piece[0] == "{":
            opened.append(None)
        elif piece[0] == "}" and opened:
            start = opened.pop()
            if start is not None:
                found[start] = text[start : piece.start()].strip()
    return [found[start] for start in sorted(found)]


def last_box(text: str) -> str | None:
    """Return the contents of the last box; None where there is none."""
    found = boxes(text)
    return found[-1] if found else None
