r"""Whether an answer is one value whose operations are written.

    > 18   \le 18   x \ne 18      an inequality
    18 20   2(3)   (18)(1)        side by side: a list, or a product; math-verify makes it a sum

`2\sqrt{3}`, `\frac{1}{2}\pi` are products, and stay.
"""

from __future__ import annotations

import re

_INEQUALITY = re.compile(
    r"[<>≠≤≥≦≧≨≩≪≫≮≯≰≱≲≳⩽⩾]|!="
    r"|\\(?:[lg]e|[lg]eq|[lg]eqslant|neq?|[lg]t|ll|gg)(?![A-Za-z])",
)
_SIDE_BY_SIDE = re.compile(
    r"\d\.?\s+[\d.]"  # 18 20
    r"|[\d)\]]\.?\s*[(\[]"  # 2(3) and (2)(3)
    r"|[)\]]\s*\.?\d"  # (2)3
    r"|(?<![\w}\]\s])\{[^{}]*\}\s*[\d({]"  # {2}{3}, which is no argument of a command
)
# \sqrt[3]{8} has its root's degree in brackets.
_ROOT_DEGREE = re.compile(r"\\sqrt\s*\[\s*\d+\s*\]")


def is_inequality(text: str) -> bool:
    """Return whether a text says that one side is not the other: > 18, <= 18, != 18."""
    return _INEQUALITY.search(text) is not None


def has_values_side_by_side(text: str) -> bool:
    """Return whether two values have neither a sign between them nor one usual meaning."""
    return _SIDE_BY_SIDE.search(_ROOT_DEGREE.sub(r"\\sqrt", text)) is not None
