r"""The final number of an answer, and the value of one that is nothing but a decimal number.

$1,234.50    1 234    -$7    .5    1e6    3/4    1 1/2    \frac{3}{4}     a number in a text
5/6/2024     2024-06-05                                                   dates: no numbers
"""

from __future__ import annotations

import re
from fractions import Fraction

from psynth_jax.evaluation.benchmarks.boxes import last_box
from psynth_jax.evaluation.benchmarks.number_markup import cleaned, western, without_separators
from psynth_jax.evaluation.benchmarks.thinking import after_thinking

_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_EXPONENT = r"(?:[eE][-+]?\d{1,3}(?!\w))?"
# A whole number before a fraction belongs to it, but a year does not.
_FRACTION = r"(?:(?:\d{1,3}+ ++)?\d++/\d++|(?:\d{1,3}+ *+)?\\[dtc]?frac\{\d++\}\{\d++\})"
_A_DATE = r"(?:\d{1,2}/\d{1,2}/(?:\d{4}|\d{2})|\d{4}-\d{2}-\d{2})(?!\d)"
# The dollar behind a sign: not the one that ends a formula, as in "$18$-$20$".
_CURRENCY = r"(?:(?:\\\$|(?<!\$[-+])\$|[\u00a2-\u00a5\u20a0-\u20cf]) ?)?"
# A sign counts where it does not stand between two numbers: "7-3" ends with 3, not with -3.
_IN_TEXT = re.compile(
    rf"(?<![\w.])(?P<sign>[-+]?){_CURRENCY}"
    rf"(?:(?P<date>{_A_DATE})|(?P<number>{_FRACTION}|{_DECIMAL}{_EXPONENT}))"
    r"|(?<=[\w)])(?P<behind>\d+(?:\.\d+)?)"
)
_PLAIN = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?\.?(?:[eE][-+]?\d{1,3})?")
_LONGEST = 200  # characters of a plain number; more are no answer to any question


def final_number(written: str) -> str:
    """Return the answer to a question about a number; "" for none.

    It is the content of the last box, as it is written, else the last number of the text, without
    currency and separators other than commas.
    """
    text = after_thinking(written)
    boxed = last_box(text)
    if boxed is not None:
        return boxed
    found = ""
    for match in _IN_TEXT.finditer(without_separators(western(text))):
        if not match["date"]:
            found = match["behind"] or match["sign"] + match["number"]
    return found


def plain_number(answer: str) -> Fraction | None:
    """Return the value of an answer that is a decimal number with nothing but a unit around it.

    LaTeX of any other kind is none.
    """
    text = cleaned(answer).strip("{}").strip()
    if len(text) > _LONGEST or not _PLAIN.fullmatch(text):
        return None
    digits = text.replace(",", "").removesuffix(".")
    if not any(character.isdigit() for character in digits):
        return None
    return Fraction(digits)
