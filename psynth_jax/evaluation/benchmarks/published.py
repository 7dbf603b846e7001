r"""How the published code reads numbers and letters out of a text, its faults included.

    \boxed{\text{A}}        reads up to the first closing brace:  \text{a
    \boxed{\frac{1}{2}}     the first number inside of that:      1
    \boxed{1,000}           commas end a number:                  1
    no box                  the last number of the text, for multiple choice, too

Only `accuracy_published` uses it.  It tells by how much a figure depends on how answers are read.
"""

from __future__ import annotations

import re

from psynth_jax.evaluation.benchmarks.thinking import after_thinking

_BOX = re.compile(r"\\boxed\{([^}]*)\}")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def published_answer(written: str) -> str:
    """Return what the published rule takes for the answer, in lower case; "" for none."""
    text = after_thinking(written)
    boxed = _BOX.findall(text)
    if boxed:
        number = _NUMBER.search(boxed[-1])
        return number[0] if number else boxed[-1].strip().lower()
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else ""


def published_gold(solution: str) -> str:
    """Return the right answer behind `####` as the published rule reads it: 1,234 is 1 to it."""
    number = _NUMBER.search(solution.rpartition("####")[2])
    return number[0] if number else ""


def same_text(written: str, gold: str) -> bool:
    """Return whether the published rule calls an answer right: the texts are equal."""
    return published_answer(written) == gold.strip().lower()


def same_integer(written: str, gold: str) -> bool:
    """Return whether the published rule for AIME calls an answer right: both are one integer."""
    try:
        return int(published_answer(written)) == int(gold)
    except ValueError:
        return False
