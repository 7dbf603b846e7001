"""Exact match and token F1 of short answers, as SQuAD and HotpotQA define them, for every script.

    normalise   lower case -> no punctuation -> no articles (a, an, the) -> single spaces
    EM          the normalised texts are equal
    F1          harmonic mean of precision and recall of the tokens, counted with repetition; an answer that is
                yes, no or noanswer scores 1 against itself and 0 against everything else (HotpotQA)

For English written in ASCII this is what the official scripts compute.  Beyond it: punctuation is Unicode's; a character of
a script that is written without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer) is a token by itself; composed and
decomposed letters are the same.  And what would leave nothing is not done: an answer "A" (of a multiple choice) keeps its
article, "?!" its punctuation, where the official scripts would take both for equal to an empty text.  Knows texts only.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_SPACES = re.compile(
    "(["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff"  # Japanese syllables
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    "])"
)


def normalise(text: str) -> str:
    """Return a text as answers are compared: lower case, single spaces, no punctuation, no articles."""
    lower = unicodedata.normalize("NFC", text).lower()
    bare = "".join(char for char in lower if not _is_punctuation(char))
    for kept in (_ARTICLES.sub(" ", bare), bare, lower):
        if words := kept.split():
            return " ".join(words)
    return ""


def answer_tokens(text: str) -> list[str]:
    """Return the tokens of the normalised text that F1 counts."""
    return _WITHOUT_SPACES.sub(r" \1 ", normalise(text)).split()


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 when the prediction equals an accepted answer, else 0.  Raises `ValueError` without an answer."""
    return max(float(normalise(prediction) == normalise(answer)) for answer in answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the F1 of the tokens against the accepted answer that fits best.  Raises `ValueError` without an answer."""
    return max(_f1(prediction, answer) for answer in answers)


def _f1(prediction: str, answer: str) -> float:
    said, right = normalise(prediction), normalise(answer)
    if said == right:
        return 1.0
    if CLOSED_ANSWERS & {said, right}:
        return 0.0
    first, second = answer_tokens(prediction), answer_tokens(answer)
    shared = (Counter(first) & Counter(second)).total()
    return 2 * shared / (len(first) + len(second)) if shared else 0.0


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")
