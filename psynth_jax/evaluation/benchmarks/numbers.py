r"""Numbers as people and models write them, and the final one of an answer.

    $1,234.50    1 234,  1{,}234    −7    50\%    18\text{ dollars}    ½ is left to math-verify

`plain_number` reads what is nothing but a decimal number; LaTeX of any other kind is none.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from psynth_jax.evaluation.benchmarks.boxes import last_box
from psynth_jax.evaluation.benchmarks.thinking import after_thinking

# A sign counts where it does not stand between two numbers: "7-3" ends with 3, not with -3.
_IN_TEXT = re.compile(
    r"(?<![\w.])[-+]?"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
    r"(?:\.\d+)?"
    r"|(?<=[\w)])\d+(?:\.\d+)?"
)
_PLAIN = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?\.?(?:[eE][-+]?\d{1,3})?")
_LONGEST = 200  # characters of a plain number; more are no answer to any question

# 1 234 and 1\,234 and 1{,}234: separators that LaTeX and other languages put between thousands
_SPACED = re.compile(r"(?<=\d)(?:\s|~|\\[,;:!> ]|\{,\}|\{\\,\}|\\thinspace\s?)+(?=\d{3}(?!\d))")
_TEXT = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|boldsymbol|mbox)\s*\{([^{}]*)\}"
_WRAPPED = re.compile(rf"{_TEXT}|\\(?:underline|textcolor\s*\{{\w+\}})\s*\{{([^{{}}]*)\}}")
# Text behind a number is a unit, of one letter as well: 18\text{ m}, 18\text{ m}^2
_TEXT_UNIT = re.compile(rf"(?<=[\d}}])[\s~]*(?:\\[,;:! ])*[\s~]*{_TEXT}(?:\s*\^\{{?\d\}}?)?\s*\.?$")
_CURRENCY = re.compile(r"\\?[$€£¥]|\\(?:pounds|euro)\b|\b(?:USD|EUR)\b")
_SPACING = re.compile(
    r"\\(?:[,;:!> \\]|color\s*\{\w+\}"
    r"|(?:quad|qquad|displaystyle|left|right|large|Large|small|sim|approx)(?![A-Za-z]))|~",
)
# A unit behind the number: letters, perhaps to a power.  One letter may be a variable, and stays.
_UNIT = re.compile(r"(?<=[\d.\s])\s*(?:[^\W\d_][./ ]*){2,}(?:\^\{?\d\}?)?\s*$")
_WORDS_BEFORE = re.compile(r"^(?:[^\W\d_]{2,}:?\s+)+(?=[-+\d.(\\])")
_MINUS = str.maketrans({"−": "-", "–": "-", "\N{FULLWIDTH COMMA}": ","})


def final_number(written: str) -> str:
    """Return the answer to a question about a number, as it is written; "" for none.

    It is the content of the last box, else the last number of the text.
    """
    text = after_thinking(written)
    boxed = last_box(text)
    if boxed is not None:
        return boxed
    numbers = _IN_TEXT.findall(_western(text))
    return numbers[-1] if numbers else ""


def cleaned(answer: str) -> str:
    """Return an answer without currency, unit, separators of thousands, and LaTeX around them."""
    text = _western(answer).replace("\\%", "%").strip()
    text = _SPACED.sub("", text)
    text = _TEXT_UNIT.sub("", text)
    text = _WRAPPED.sub(lambda match: f" {match[1] or match[2] or ''}", text)
    text = _CURRENCY.sub("", text)
    text = _SPACING.sub(" ", text)
    text = text.strip().strip("*$").strip()
    text = _WORDS_BEFORE.sub("", _side_with_number(text))
    return _UNIT.sub("", text).strip()


def _side_with_number(text: str) -> str:
    """Return the number's side of an equation: 18 of "x = 18"; all of anything else."""
    if text.count("=") != 1:
        return text
    left, _, right = text.partition("=")
    sides = [side for side in (right, left) if any(character.isdigit() for character in side)]
    return sides[0].strip() if sides else text


def plain_number(answer: str) -> Fraction | None:
    """Return the value of an answer that is a decimal number with nothing but a unit around it.

    "50%" is 50: a question asks for the percentage as a number.
    """
    text = cleaned(answer).removesuffix("%").strip().strip("{}").strip()
    if len(text) > _LONGEST or not _PLAIN.fullmatch(text):
        return None
    digits = text.replace(",", "").removesuffix(".")
    if not any(character.isdigit() for character in digits):
        return None
    return Fraction(digits)


def _western(text: str) -> str:
    """Write the digits of other scripts, minus signs and commas as ASCII has them."""
    written = []
    for character in text.translate(_MINUS):
        digit = None if character.isascii() else unicodedata.decimal(character, None)
        written.append(character if digit is None else str(digit))
    return "".join(written)
