r"""Whether two mathematical answers are one value, by math-verify, and a text that equal answers share.

    answer ── plain number? ── exact fractions are compared
                  └ no ── within bounds? ── math-verify (SymPy): \frac{1}{2} = 0.5, 2^{10} = 1024
                                └ no ── wrong

math-verify stops what takes too long by a signal, which works in the main thread only and not
inside of a long multiplication.  So its timers are off, and texts that could take long are refused
before: a tower of powers, a large factorial, commands that make SymPy add up or integrate.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
from types import ModuleType
from typing import Any

from psynth_jax.errors import InputError
from psynth_jax.evaluation.benchmarks.numbers import cleaned, plain_number

INSTALL = "pip install 'psynth-jax[evaluation]'"
LONGEST = 200  # characters of an answer that is no plain number

_COMMAND = re.compile(r"\\([A-Za-z]+)")
_ALLOWED = frozenset(
    {
        *("frac", "dfrac", "tfrac", "cfrac", "sqrt", "cdot", "times", "div", "pm", "mp", "pi", "infty"),
        *("text", "textbf", "mathrm", "mathbf", "boxed", "left", "right", "displaystyle", "quad", "qquad"),
        *("circ", "degree", "approx", "equiv", "le", "leq", "ge", "geq", "ne", "neq", "in", "ldots", "dots"),
        *("sin", "cos", "tan", "log", "ln", "e"),
    }
)
_DIGITS = re.compile(r"\d{60,}")
_POWER = re.compile(r"\^|\*\*")
# A power: a number of at most three digits, or such a fraction.
_SMALL_POWER = re.compile(r"(?:\^|\*\*)\s*(?:\d|\{\s*[-+]?\d{1,3}(?:/\d{1,3})?\s*\}|\(?-?\d{1,3}\)?(?!\d)|\{?\\circ\}?)")
_TOWER = re.compile(r"(?:\^|\*\*)[^\s=+*-]*(?:\^|\*\*)")
_FACTORIAL = re.compile(r"(?<![\d.])\d{1,2}!(?!!)")


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
    if not is_bounded(text):
        return False
    parsed, target = _parsed(text), _parsed(cleaned(gold))
    if not parsed or not target:
        return False
    return bool(_library().verify(target, parsed, timeout_seconds=None))


def value_key(answer: str) -> str:
    """Return a text that answers of one value share: 1,000 and 1000.0 give 1000; "" for none.

    An answer that is no number is its own key, without white space.
    """
    number = plain_number(answer)
    if number is not None:
        return str(number)
    text = cleaned(answer)
    parsed = _parsed(text) if is_bounded(text) else []
    value = _value(parsed[0]) if parsed else None
    return "".join(text.split()) if value is None else value


def is_bounded(text: str) -> bool:
    """Return whether an answer is so small that SymPy cannot be kept busy with it."""
    if not text or len(text) > LONGEST or _DIGITS.search(text):
        return False
    if not _ALLOWED.issuperset(_COMMAND.findall(text)):
        return False
    if _TOWER.search(text) or len(_POWER.findall(text)) != len(_SMALL_POWER.findall(text)):
        return False
    return text.count("!") == len(_FACTORIAL.findall(text)) and text.count("!") <= 1


def _parsed(text: str) -> list[Any]:
    # A box around it lets math-verify take the whole text for the answer, and not a number in it.
    return list(_library().parse(f"\\boxed{{{text}}}", parsing_timeout=None))


def _value(expression: Any) -> str | None:
    """Return the value of a SymPy number: a fraction as it is, others to 12 digits."""
    if not getattr(expression, "is_number", False):
        return None
    exact = expression.doit() if hasattr(expression, "doit") else expression
    if exact.is_Rational:
        return str(exact)
    digits = f"{complex(exact.evalf(15)):.12g}" if exact.is_real is False else f"{float(exact):.12g}"
    number = plain_number(digits)
    return digits if number is None else str(number)


@functools.cache
def _library() -> ModuleType:
    require()
    import math_verify

    # It warns at every call that its timers are off; the bounds above are there for that.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
