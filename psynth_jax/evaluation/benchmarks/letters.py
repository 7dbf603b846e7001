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
# What may stand around a letter: brackets, emphasis, quotes, LaTeX commands with their brace.
_AROUND = r"(?:\\[A-Za-z]+\s*\{?|[(\[{*_$\"' ])*"
# A letter alone.  In lower case only with a bracket behind it, and A not before most words in lower
# case: both are an article as well.
_NO_WORD = r"(?![A-Za-z]|['’][A-Za-z])"
_ARTICLE = r"(?!\s+(?!(?:because|since|as|for|which|and|is)\b)[a-z])"
_LETTER = rf"(?:([B-J]){_NO_WORD}|(A){_NO_WORD}{_ARTICLE}|([a-j])(?=[)\]}}]))"
_PHRASE = re.compile(
    r"(?i:\banswer|\boption|\bchoice|\brespuesta|\br[ée]ponse|\bantwort|\brisposta|\bresposta"
    r"|ответ|答案|选项|選項|正解)"
    r"(?i:\s+(?:correcta|correcte|correct|here|to this question|letter|choice|option))*"
    r"\**\s*(?i:\bis\b|\bwould be\b|\bshould be\b|\bes\b|\best\b|\bist\b|\bè\b|\bé\b"
    r"|是|为|為|は|:|：|=)+"
    r"\s*(?i:therefore\b|thus\b|clearly\b|option\b|choice\b|letter\b|:)?\s*" + _AROUND + _LETTER,
)
_IS_RIGHT = re.compile(
    r"\b(?i:option|choice|answer)\s*[(*_]*([A-J])[)*_]*\s+(?i:is)\s+"
    r"(?i:the\s+)?(?i:most\s+)?(?i:correct|right|best|answer|likely)",
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
    said = _said(text)
    in_range = [letter for letter in said if letter in allowed]
    if in_range:
        return in_range[-1]
    lines = [line for line in text.splitlines() if line.strip()]
    alone = _ALONE.fullmatch(_bare(lines[-1])) if lines else None
    return alone[1] if alone is not None and alone[1] in allowed else ""


def _said(text: str) -> list[str]:
    """Return the letters that are called the answer, in the order of the text."""
    found = [*_PHRASE.finditer(text), *_IS_RIGHT.finditer(text)]
    found.sort(key=re.Match.start)
    letters = []
    for match in found:
        letters += [letter.upper() for letter in match.groups() if letter]
    return letters


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
