r"""The contents of \boxed{...}, with braces inside of it.

so \boxed{\frac{1}{2}} or \boxed{7
          └──────────┘           └ never closed: no box
"""

from __future__ import annotations

import re

_OPENING = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are printed, they open and close nothing


def boxes(text: str) -> list[str]:
    """Return the contents of all boxes, in the order in which they open; they may be nested."""
    found = []
    for opening in _OPENING.finditer(text):
        end = _closing(text, opening.end())
        if end is not None:
            found.append(text[opening.end() : end].strip())
    return found


def last_box(text: str) -> str | None:
    """Return the contents of the last box; None where there is none."""
    found = boxes(text)
    return found[-1] if found else None


def _closing(text: str, start: int) -> int | None:
    depth = 1
    for brace in _BRACE.finditer(text, start):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
        if depth == 0:
            return brace.start()
    return None
