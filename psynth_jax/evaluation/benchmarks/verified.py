r"""Whether two mathematical answers are one value, by math-verify; a text that equal ones share.

    answer ── plain number? ── exact fractions are compared
                  └ no ── one value, within bounds? ── math-verify (SymPy): \frac{1}{2} = 0.5
                                └ no ── wrong

math-verify stops what takes too long by a signal, which works in the main thread only and not
inside of a long multiplication.  So its timers are off, and texts that could take long are refused
before: variables, towers of powers, large factorials, deep brackets, sums and integrals.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
from types import ModuleType
from typing import Any

from psynth_jax.errors import InputError
from psynth_jax.evaluation.benchmarks.number_markup import cleaned
from psynth_jax.evaluation.benchmarks.numbers import plain_number
from psynth_jax.evaluation.benchmarks.one_value import has_values_side_by_side, is_inequality

INSTALL = "pip install 'psynth-jax[evaluation]'"
LONGEST = 200  # characters of an answer that is no plain number

_COMMAND = re.compile(r"\\([A-Za-z]+)")
_ALLOWED = frozenset(
    {
        *("frac", "dfrac", "tfrac", "cfrac", "sqrt", "cdot", "times", "div", "pm", "mp"),
        *("text", "textbf", "mathrm", "mathbf", "boxed", "left", "right", "displaystyle"),
        *("pi", "infty", "circ", "degree", "approx", "equiv", "quad", "qquad", "ldots", "dots"),
        "in",
    }
)
_LOOSE_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_DIGITS = re.compile(r"\d{60,}")
_POWER = re.compile(r"\^|\*\*")
# A power that is a number of at most three digits, or a fraction of such; degrees are none.
_SMALL_POWER = re.compile(
    r"(?:\^|\*\*)\s*(?:(\d)|\{\s*[-+]?(\d{1,3})(?:/\d{1,3})?\s*\}|\{?\\circ\}?)",
)
_TOWER = re.compile(r"(?:\^|\*\*)[\s\d{}]*(?:\^|\*\*)")
# The product of all powers.  SymPy multiplies sums of roots out: they get small ones.
_MOST_POWERS = 1000
_MOST_POWERS_OF_ROOTS = 6
_FACTORIAL = re.compile(r"(?<![\d.])\d{1,2}!(?!!)")
_DEEPEST = 6  # brackets inside of brackets; every one more doubles the time of math-verify's parser


def require() -> None:
    """Raise `InputError` with the command that installs math-verify, where it is missing."""
    if importlib.util.find_spec("math_verify") is None:
        raise InputError(f"answers in mathematics are compared by math-verify: {INSTALL}")


def equal(answer: str, gold: str) -> bool:
    """Return whether an answer has the value of the right one.

    Raises `InputError` where math-verify is needed and missing.
    """
    number, right = plain_number(answer), plain_number(gold)
    if number is not None and right is not None:
        return number == right
    text = cleaned(answer)
    if not _is_readable(text):
        return False
    parsed, target = _parsed(text), _parsed(cleaned(gold))
    if not parsed or not target:
        return False
    return bool(_library().verify(target, parsed, timeout_seconds=None))


def value_key(answer: str) -> str:
    """Return a text that answers of one value share: 1,000 and 1000.0 give 1000; "" for none.

    An answer that is no number is its own key, without white space but between digits.
    """
    number = plain_number(answer)
    if number is not None:
        return str(number)
    text = cleaned(answer)
    parsed = _parsed(text) if _is_readable(text) else []
    value = _value(parsed[0]) if parsed else None
    # "18 20" must not share a key with 1820.
    return _LOOSE_SPACE.sub("", text) if value is None else value


def _is_readable(text: str) -> bool:
    """Return whether math-verify reads the value that a cleaned answer has, and in short time."""
    return is_bounded(text) and not is_inequality(text) and not has_values_side_by_side(text)


def is_bounded(text: str) -> bool:
    """Return whether an answer is so small that SymPy cannot be kept busy with it."""
    if not text or len(text) > LONGEST or _DIGITS.search(text) or _depth(text) > _DEEPEST:
        return False
    commands = _COMMAND.findall(text)
    if not _ALLOWED.issuperset(commands):
        return False
    # Without commands no letter may be left: right answers are numbers, and have no variables.
    if any(character.isalpha() for character in _COMMAND.sub("", text)):
        return False
    factorials = text.count("!")
    if factorials > 1 or factorials != len(_FACTORIAL.findall(text)):
        return False
    return _has_small_powers(text)


def _has_small_powers(text: str) -> bool:
    powers = _SMALL_POWER.findall(text)
    if len(powers) != len(_POWER.findall(text)) or _TOWER.search(text):
        return False
    product = 1
    for short, long in powers:
        product *= max(1, int(short or long or 1))
    return product <= (_MOST_POWERS_OF_ROOTS if "\\sqrt" in text else _MOST_POWERS)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _parsed(text: str) -> list[Any]:
    # A box around it lets math-verify take the whole text for the answer, and not a number in it.
    return list(_library().parse(f"\\boxed{{{text}}}", parsing_timeout=None))


def _value(expression: Any) -> str | None:
    """Return the value of a SymPy number: a fraction as it is, others to 12 digits."""
    if not getattr(expression, "is_number", False):
        return None
    try:
        exact = expression.doit()
        if exact.is_Rational:
            return str(exact)
        digits = f"{float(exact.evalf(15)):.12g}"
    except (TypeError, ValueError, OverflowError):  # not real; or of more digits than Python writes
        return None
    number = plain_number(digits)
    return digits if number is None else str(number)


@functools.cache
def _library() -> ModuleType:
    require()
    import math_verify

    # It warns at every call that its timers are off; the bounds above are there for that.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
