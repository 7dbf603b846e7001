r"""The letter of an answer to a multiple-choice question.

1. the last box that holds one     \boxed{B}  \boxed{\text{(B)}}  \boxed{B. aspirin}
2. "the answer is B", the last     Answer: **B**   correct option is (B)   答案是 B
3. a letter alone in the last line
"""

from __future__ import annotations

import re

from psynth_jax.evaluation.benchmarks.boxes import boxes
from psynth_jax.evaluation.benchmarks.thinking import after_thinking

LETTERS = "ABCDEFGHIJ"

_MARKUP = re.compile(r"\\[A-Za-z]+\b|\\[,;:! ]|[{}$*_`\"']")
# One letter with what ends it.  Behind white space only B to J: "A patient" begins with an article.
_LEADING = re.compile(r"[(\[]?\s*(?:([A-Ja-j])\s*(?:[)\].:,]|$)|([B-J])\s)")
_NAMED = re.compile(r"^\s*(?:the\s+)?(?:option|choice|answer)\s*:?\s*", re.IGNORECASE)
_ANOTHER = re.compile(r"\s*(?:,|/|&|and|or)?\s*[(\[]?[A-J]\s*[)\]]?\s*(?:[,/&]|and\b|or\b|$)")
_PHRASE = re.compile(
    r"(?:\banswer|\boption|\bchoice|\brespuesta|\br[ée]ponse|\bantwort|\brisposta|\bresposta"
    r"|ответ|答案|选项|選項|正解)"
    r"(?:\s+(?:correcta|correcte|correct|here|to this question|letter|choice|option))*"
    r"\s*(?:\bis\b|\bwould be\b|\bshould be\b|\bes\b|\best\b|\bist\b|\bè\b|\bé\b"
    r"|是|为|為|は|:|：|=)+"
    r"\s*(?:therefore|thus|clearly|option|choice|letter|:)?\s*"
    r"[(\[*_$\"'{\\a-z]*?[(\[{*_$\"' ]*([A-J])(?![A-Za-z'’]|\s+(?:[a-z]))",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    r"\b(?:option|choice|answer)\s*[(*_]*([A-J])[)*_]*\s+is\s+"
    r"(?:the\s+)?(?:most\s+)?(?:correct|right|best|answer|likely)",
    re.IGNORECASE,
)
_ALONE = re.compile(r"[(\[]?\s*([A-J])\s*[)\].:]?")


def final_letter(written: str, count: int = 4) -> str:
    """Return the letter that a text answers with, in upper case; "" for none.

    count: how many options there are; letters beyond them are no answer.
    """
    text = after_thinking(written)
    allowed = LETTERS[:count]
    for content in reversed(boxes(text)):
        letter = _leading_letter(content)
        if letter:
            return letter if letter in allowed else ""
    said = [(match.start(), match[1].upper()) for match in _PHRASE.finditer(text)]
    said += [(match.start(), match[1].upper()) for match in _IS_RIGHT.finditer(text)]
    in_range = [place for place in sorted(said) if place[1] in allowed]
    if in_range:
        return in_range[-1][1]
    lines = [line for line in text.splitlines() if line.strip()]
    alone = _ALONE.fullmatch(_bare(lines[-1])) if lines else None
    return alone[1] if alone is not None and alone[1] in allowed else ""


def _leading_letter(content: str) -> str:
    text = _NAMED.sub("", _bare(content))
    match = _LEADING.match(text)
    if match is None:
        return ""
    # "A, C" and "A or B" choose nothing.
    if _ANOTHER.fullmatch(text[match.end() - 1 :].lstrip(").]:")) and text[match.end() :].strip():
        return ""
    return (match[1] or match[2]).upper()


def _bare(text: str) -> str:
    return _MARKUP.sub(" ", text).strip()
