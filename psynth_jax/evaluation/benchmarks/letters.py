r"""The letter of an answer to a multiple-choice question.

1. the last box that holds one     \boxed{B}  \boxed{\text{(B)}}  \boxed{B. aspirin}
2. "the answer is B", the last     Answer: **B**   correct option is (B)   答案是 B
3. a letter alone in the last line           B     (B)     Option B     Therefore, B.
4. a letter that begins a line               B) aspirin    B. aspirin
"""

from __future__ import annotations

import re
import unicodedata

from psynth_jax.evaluation.benchmarks.boxes import boxes
from psynth_jax.evaluation.benchmarks.letter_phrases import (
    has_another,
    is_letter,
    letters_called_right,
)
from psynth_jax.evaluation.benchmarks.lettered_names import is_name
from psynth_jax.evaluation.benchmarks.thinking import after_thinking

LETTERS = "ABCDEFGHIJ"

_MARKUP = re.compile(r"\\[A-Za-z]+\b|\\[,;:! ]|[{}$*_`\"']")
# One letter with what ends it.  Behind white space only B to J: "A patient" begins with an article.
_LEADING = re.compile(r"[(\[]?\s*(?:([A-Ja-j])\s*(?:[)\].:,]|$)|([B-J])\s)")
_NAMED = re.compile(r"^\s*(?:the\s+)?(?:option|choice|answer)\s*:?\s*", re.IGNORECASE)
_ALONE = re.compile(
    r"(?:(?:therefore|thus|so|hence)\b[,:]?\s*+)?"
    r"(?:(?:it['’]?s|it is|it must be)\s++)?"
    r"(?:(?:the\s++)?(?:option|choice|answer|letter)\b\s*+[:-]?\s*+)?"
    r"[(\[]?\s*+(?-i:([A-J]))\s*+[)\].:]*",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(r"(?<=[.!?;])\s+(?=(?:therefore|thus|so|hence)\b)", re.IGNORECASE)
# A bracket or a stop must follow, and no letter behind a stop: "B.C.", "e.g."
_LINE = re.compile(r"[(\[]?([A-J])\s?(?:[)\]:]|\.(?![A-Za-z]))")


def final_letter(written: str, count: int = 4) -> str:
    """Return the letter that a text answers with, in upper case; "" for none.

    count: how many options there are; letters beyond them are no answer.
    """
    # Full-width letters, colons and brackets become those of ASCII.
    text = unicodedata.normalize("NFKC", after_thinking(written))
    allowed = LETTERS[:count]
    for content in reversed(boxes(text)):
        letter = _leading_letter(content)
        if letter:
            return letter if letter in allowed else ""
    # Two letters at once are "", which is in every text.
    said = [letter for letter in letters_called_right(text) if letter in allowed]
    if said and said[-1]:
        return said[-1]
    lines = [_bare(line) for line in text.splitlines() if line.strip()]
    letter = _letter_alone(lines) or _letter_of_line(lines)
    return letter if letter in allowed else ""


def _leading_letter(content: str) -> str:
    text = _NAMED.sub("", _bare(content))
    match = _LEADING.match(text)
    if match is None:
        return ""
    place = match.start(match.lastindex or 1)
    # "A, C" and "A or B" choose nothing; neither does "C. difficile".
    if has_another(text, place) or is_name(text, place):
        return ""
    return text[place].upper()


def _letter_alone(lines: list[str]) -> str:
    """Return the letter that is the last line, or the conclusion at its end."""
    if not lines:
        return ""
    match = _ALONE.fullmatch(_CONCLUSION.split(lines[-1])[-1])
    return match[1] if match is not None else ""


def _letter_of_line(lines: list[str]) -> str:
    """Return the letter with which the last line begins, or the first one.

    A list of options chooses none of them: the last line counts unless the letter before its own
    begins another line above it, the first line only if no other line begins with a letter.
    """
    leading = [_beginning(line) for line in lines]
    above = [letter for letter in leading[:-1] if letter]
    if leading and leading[-1]:
        follows = bool(above) and ord(leading[-1]) == ord(above[-1]) + 1
        return "" if follows else leading[-1]
    return leading[0] if len(above) == 1 else ""


def _beginning(line: str) -> str:
    match = _LINE.match(line)
    if match is None:
        return ""
    place = match.start(1)
    is_option = is_letter(line, place, named=False) and not has_another(line, place)
    return line[place] if is_option else ""


def _bare(text: str) -> str:
    return _MARKUP.sub(" ", text).strip()
