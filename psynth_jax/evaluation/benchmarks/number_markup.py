r"""What stands around a number is taken away: currency, unit, LaTeX, separators of thousands.

\$1{,}234\text{ dollars}  ->  1234        x = y = 18       ->  18       18^{\text{th}}  ->  18
60^\circ, 60°             ->  60          \mathsf{18}      ->  18       ½               ->  1/2
1 1/2, 1\frac{1}{2}       ->  (1+1/2)     \text{Rs. }18    ->  18
"""

from __future__ import annotations

import re
import unicodedata

from psynth_jax.evaluation.benchmarks.one_value import is_inequality

# 1 234 and 1\,234 and 1{,}234: separators that LaTeX and other languages put between thousands.
# A numerator is no group, as in 1 100/200; nor is the number of a thing: 3 100-dollar bills.
_BLANK = r"[ \u00a0\u2009\u202f~]"
_SEPARATOR = rf"(?:{_BLANK}|\\[,;:!> ]|\{{,\}}|\{{\\,\}}|\\thinspace\s?){{1,3}}"
_SPACED = re.compile(
    rf"(?<![A-Za-z\d.,_])[1-9]\d{{0,2}}(?:{_SEPARATOR}\d{{3}})+(?![\d/]|-[A-Za-z])",
)
_BETWEEN = re.compile(_SEPARATOR)
_FONT = r"(?:bf|it|rm|sf|tt|up|normal)"
_COMMAND = rf"\\(?:text{_FONT}?|math{_FONT}|boldsymbol|bm|emph|[mh]box)"
_TEXT = rf"{_COMMAND}\s*\{{([^{{}}]*)\}}"
_WRAPPED = re.compile(rf"{_TEXT}|\\(?:underline|textcolor\s*\{{\w+\}})\s*\{{([^{{}}]*)\}}")
# Text behind a number is a unit, of one letter as well: 18\text{ m}, 18\text{ m}^2
_TEXT_UNIT = re.compile(rf"(?<=[\d}}])[\s~]*(?:\\[,;:! ])*[\s~]*{_TEXT}(?:\s*\^\{{?\d\}}?)?\s*\.?$")
_ORDINAL = re.compile(rf"(?<=\d)\s*\^\s*\{{?\s*(?:{_COMMAND}\s*\{{?)?\s*(?:st|nd|rd|th)\s*\}}*")
_DEGREES = re.compile(
    r"(?<=\d)\s*(?:°|\^\s*\{?\s*(?:\\circ|\\degree)\s*\}?|\\degree)\s*[CFK]?\s*\.?$",
)
_SIGNS = r"$\u00a2-\u00a5\u20a0-\u20cf"
_CURRENCY = re.compile(
    rf"(?:\b(?:US|AU|CA|NZ|HK|SG?|A|C|R))?\\?[{_SIGNS}]|\\(?:pounds|euro)\b"
    r"|\bRs\.?(?=[\s\d])|\b(?:USD|EUR|GBP|INR)\b"
)
_SPACING = re.compile(
    r"\\(?:[,;:!> \\]|color\s*\{\w+\}"
    r"|(?:quad|qquad|displaystyle|left|right|large|Large|small|sim|approx|rm|bf|it|sf|tt|bfseries)"
    r"(?![A-Za-z]))|[~≈]",
)
# A unit behind the number: letters, perhaps to a power.  One letter may be a variable, and stays.
_UNIT = re.compile(r"(?<=[\d.\s])\s*(?:[^\W\d_][./ ]*){2,}(?:\^\{?\d\}?)?\s*$")
_WORDS_BEFORE = re.compile(r"^(?:[^\W\d_]{2,}[.:]?\s+)+(?=[-+\d.(\\])")
# These words say that the number is not the value.
_BOUNDS = re.compile(r"\b(?:least|most|than|not|over|under|above|below)\b", re.IGNORECASE)
# Between two signs of equality: a value that something else follows.  x = 3, y = 5 is no chain.
_LISTED = re.compile(r"\d[\s,;]+.*[^\W\d_]")
_LATEX_WORD = re.compile(r"\\[A-Za-z]+")
_MIXED = re.compile(
    r"(?<!\^\{)(?<![.,/^\w])(\d{1,4})(?:\s+(\d{1,4})\s*/\s*(\d{1,4})(?![\d./,^])"
    r"|\s*\\[dtc]?frac\s*(?:\{\s*(\d{1,4})\s*\}\s*\{\s*(\d{1,4})\s*\}|(\d)(\d)))"
)
_LONGEST = 1000
_PUNCTUATION = str.maketrans({"−": "-", "–": "-", "⁄": "/", "\N{FULLWIDTH COMMA}": ","})


def cleaned(answer: str) -> str:
    """Return an answer without currency, unit, separators of thousands, and LaTeX around them.

    A text of more than 1,000 characters is no answer, and stays as it is.
    """
    if len(answer) > _LONGEST:
        return answer.strip()
    text = western(answer).replace("\\%", "%").strip()
    text = without_separators(text)
    text = _ORDINAL.sub("", text)
    text = _TEXT_UNIT.sub("", text)
    text = _WRAPPED.sub(lambda match: f" {match[1] or match[2] or ''}", text)
    text = _CURRENCY.sub("", text)
    text = _SPACING.sub(" ", text)
    text = text.strip().strip("*$").strip()
    text = _side_with_number(text)
    if not _BOUNDS.search(text):
        text = _WORDS_BEFORE.sub("", text)
    text = _DEGREES.sub("", _UNIT.sub("", text))
    # 50% is 50: a question asks for the percentage as a number.
    return _MIXED.sub(_sum, text).strip().removesuffix("%").strip()


def western(text: str) -> str:
    """Write digits of other scripts, minus signs, commas and signs such as ½ as ASCII has them."""
    written = []
    for character in text.translate(_PUNCTUATION):
        if character.isascii():
            written.append(character)
        elif unicodedata.decomposition(character).startswith("<fraction>"):
            # The blank keeps 1½ from becoming 11/2.
            fraction = unicodedata.normalize("NFKC", character).replace("⁄", "/")
            written.append(f" {fraction}")
        else:
            written.append(str(unicodedata.decimal(character, character)))
    return "".join(written)


def without_separators(text: str) -> str:
    """Return a text whose numbers have no blanks, braces or LaTeX between their thousands."""
    return _SPACED.sub(lambda match: _BETWEEN.sub("", match[0]), text)


def _side_with_number(text: str) -> str:
    """Return the last side of an equation that has digits: 18 of "x = y = 18" and of "18 = x"."""
    # Read as an equation, "<= 18" would have the side 18.
    if is_inequality(text):
        return text
    sides = text.split("=")
    # The sides that have another one on either side of them.
    for side in sides[1:-1]:
        if _LISTED.search(_LATEX_WORD.sub("", side)):
            return text
    for side in reversed(sides):
        if any(character.isdigit() for character in side):
            return side.strip()
    return text


def _sum(mixed: re.Match[str]) -> str:
    """Write 1 1/2 as a sum: math-verify adds or multiplies what stands side by side."""
    whole, *parts = mixed.groups()
    numerator, denominator = [part for part in parts if part]
    if numerator.startswith("0") or int(numerator) >= int(denominator):
        return mixed[0]
    return f"({whole}+{numerator}/{denominator})"
