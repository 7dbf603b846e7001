r"""Which letters a text calls its answer, in running text, and what looks like a letter only.

The answer is (B)   Answer: **B**   The answer is not A but B   I choose B   答案是B     B
Thus C is correct.  (C) is right    Option C is the best answer                         C
The answer is B or C     Answer: A/B                                                    none
The answer is D-dimer    Answer: C. difficile     The option: C is wrong     B12        none
"""

from __future__ import annotations

import re

from psynth_jax.evaluation.benchmarks.lettered_names import is_name

# What may stand around a letter: brackets, emphasis, quotes, LaTeX commands with their brace.
# All loops are possessive: white space without end would be tried in every split otherwise.
_AROUND = r"""(?:\s|[(\[{*_$"'`]|\\[A-Za-z]+|\\[(\[])*+"""
_BEHIND = r"""[)\]}*_$"'`]*+"""
_KEY = (
    r"(?i:\banswer|\boption|\bchoice|\brespuesta|\br[ée]ponse|\bantwort|\brisposta|\bresposta"
    r"|ответ|答案|选项|選項|正解)"
    r"(?i:\s++(?:correcta|correcte|correct|here|to this question|letter|choice|option)\b)*+"
)
_IS = (
    r"(?i:\bis\b|\b(?:would|should|must|has to)\s+be\b|\bes\b|\best\b|\bist\b|\bè\b|\bé\b"
    r"|是|为|為|は|:|=|(?<=\s)[-–—](?=\s))"
)
_FILLER = (
    r"(?i:therefore|thus|clearly|indeed|probably|definitely|(?:most\s)?likely"
    r"|(?:the\s)?(?:option|choice|letter))\b"
)
_NOT_BUT = rf"(?i:not\b){_AROUND}[A-J]{_BEHIND},?\s*+(?i:but\b)(?:\s*+(?i:rather)\b)?"
_CHOOSE = (
    r"\bI(?:['’]d|['’]ll|\s+would|\s+will)?\s+(?:choose|chose|pick|select|go\s+with)\b"
    r"(?:\s+(?i:the\s+)?(?i:option|choice|answer|letter)\b)?"
)
_CALLED = re.compile(
    rf"(?:{_KEY}{_BEHIND}\s*+(?:{_IS}{_AROUND})++(?:{_NOT_BUT}{_AROUND})?|{_CHOOSE}{_AROUND})"
    rf"(?:(?:{_FILLER}|:){_AROUND})*+"
)

# "answer", "right" and "best" are often part of something else: "is right heart failure".
_CLAIM = (
    r"(?i:\s+is\s+(?:(?:therefore|thus|clearly|indeed|most|likely|the|only|single)\s+)*"
    r"(?:correct\b|answer\b|(?:right|best|likely)(?=\s*(?:[.,;:!)*]|$"
    r"|\b(?:answer|choice|option|one|because|since|as|here)\b))))"
)
# Before a letter that nothing names: the start of a sentence, or a word that draws a conclusion.
# "Vitamin C is correct" and "Statement A is correct" choose nothing.
_CONCLUDES = r"(?i:\b(?:thus|so|therefore|hence|then|that|think|believe|say|only|but)\b[,:]?\s+)"
_IS_RIGHT = re.compile(
    rf"(?:(?i:\b(?:option|choice|answer)\b)\s*|{_CONCLUDES}|(?<=[.!?:,])\s+|^[ \t]*"
    r"|(?<![(\[*_`\"'])(?=[(\[*]))"
    rf"[(\[*_`\"']*+(?P<letter>[A-J]){_BEHIND}{_CLAIM}",
    re.MULTILINE,
)
_LISTED_BEFORE = re.compile(r"\b[A-J]\b\W{0,3}(?:,|/|&|and|or)\W*$")

_LETTER = re.compile(
    r"[A-Ja-j](?![A-Za-z0-9]|['’][A-Za-z]|[-‐–][A-Za-z0-9]|[_^]\{?[A-Za-z0-9])",
)
_CLOSED = re.compile(r"[)\]}]")
_END_OF_LINE = re.compile(r"""[.*`_)\]}$"' \t]*(?:\n|$)""")
# "A patient", "A Western blot", "I think": both stand before any word but these.
_ARTICLE = re.compile(
    r"[ \t]+(?!(?i:because|since|as|for|which|and|or|is|was|but|not)\b)[A-Za-z0-9]",
)
_DENIED = re.compile(
    rf"{_BEHIND}\s+(?:is|was)"
    r"(?:n['’]t\b|\s+(?:not|wrong|incorrect|false|never|excluded|ruled out)\b)"
)
_VERB = r"(?:is|was|has|would|does|did|can|could|cannot|may|might|should|will)"
_ANOTHER = re.compile(
    rf"{_BEHIND}[ \t]*+(?:"
    # "B or C", "A, B and D"; but not "B, C is wrong", nor "B and a fever"
    rf"(?:[,;/&+]|and\b|or\b)[ \t]*+(?:(?:and|or|option)\b[ \t]*+)*+[(\[{{*_$\"'`]*+[A-J]"
    rf"(?![A-Za-z0-9'’-]){_BEHIND}(?!\s+{_VERB}\b)(?!\s+(?!(?:and|or|because|since|as)\b)[a-z])"
    # "(B) (C)", "B. C"
    rf"|[.:]?[ \t]*+[(\[{{*_$\"'`]*+[A-J]{_BEHIND}[.]?[ \t]*(?:\n|$))"
)


def letters_called_right(text: str) -> list[str]:
    """Return the letters that are called the answer, in upper case, in the order of the text.

    "" stands for two letters at once, as in "the answer is A or B".
    """
    found = []
    for match in _CALLED.finditer(text):
        if is_letter(text, match.end(), ":" in match[0]):
            found.append((match.end(), _chosen(text, match.end())))
    for match in _IS_RIGHT.finditer(text):
        place = match.start("letter")
        if not _LISTED_BEFORE.search(text, max(0, match.start() - 8), place):
            found.append((place, text[place]))
    found.sort()
    return [letter for _, letter in found]


def is_letter(text: str, place: int, named: bool) -> bool:
    """Return whether an option's letter stands at a place of a text, alone and not denied.

    named: whether a colon stands before it, so that a lone "a" is no article.
    """
    match = _LETTER.match(text, place)
    if match is None or is_name(text, place):
        return False
    behind = match.end()
    if _DENIED.match(text, behind):
        return False
    letter = match[0]
    if letter.islower():
        # In lower case only with a bracket behind it, or where the line ends.
        ends = _END_OF_LINE.match(text, behind) is not None and (named or letter != "a")
        return ends or _CLOSED.match(text, behind) is not None
    return letter not in "AI" or _ARTICLE.match(text, behind) is None


def has_another(text: str, place: int) -> bool:
    """Return whether a second letter is named beside the one at a place of a text."""
    return _ANOTHER.match(text, place + 1) is not None


def _chosen(text: str, place: int) -> str:
    return "" if has_another(text, place) else text[place].upper()
