"""Whether what a candidate returns is right, given what the canonical solution returns.

equal as Python has it       1 == 1.0 == True, but (1,) != [1]; nan counts as equal to nan
floats, at any depth         within the row's `atol`, or 1e-6, plus 1e-7 of the right value;
                             parts of sets and keys are compared in sorted order
some functions               as EvalPlus documents them; the three tables below
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from typing import Any

from psynth_jax.evaluation.benchmarks.sandboxed.values import Other, refuse_alike

# Any order and any number of repetitions is right.
AS_SETS = frozenset(
    {
        *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"),
        *("larg_nnum", "intersection_array", "find_dissimilar", "Diff"),
    }
)
# The canonical solution returns a match or None; True and False are right as well.
AS_TRUTH = frozenset({"check_str", "text_match_three", "text_starta_endb"})
# Any root of the polynomial is right.
AS_ROOTS = frozenset({"find_zero"})

_ATOL = 1e-6
_RTOL = 1e-7
_DIGITS = 12  # of a float in a vote: those who differ behind them say the same


def is_right(entry_point: str, got: Any, right: Any, arguments: Sequence[Any], atol: float) -> bool:
    """Return whether a function returned what it should, for one input.

    Args:
      entry_point: name of the function; some have rules of their own.
      got: what the candidate returned.
      right: what the canonical solution returned.
      arguments: what both were called with.
      atol: how far floats may be off; 0 stands for 1e-6.
    """
    try:
        if entry_point in AS_ROOTS:
            return _is_root(got, right, arguments, atol or _ATOL)
        if entry_point in AS_TRUTH:
            return _truth(got) == _truth(right)
        if entry_point in AS_SETS and isinstance(got, list | tuple | set | frozenset):
            return _same(_as_set(got), _as_set(right), atol)
        return _same(got, right, atol)
    # What a candidate returns may not be hashable, or as large as no float.
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False


def output_key(entry_point: str, outputs: Sequence[Any]) -> str:
    """Return a digest that programs share which return the same for the same inputs."""
    spelled = []
    for value in outputs:
        if entry_point in AS_TRUTH:
            value = _truth(value)
        elif entry_point in AS_SETS and isinstance(value, list | tuple | set | frozenset):
            value = frozenset(_spelled(part) for part in value)
        spelled.append(_spelled(value))
    return hashlib.sha256("\n".join(spelled).encode("utf-8", "backslashreplace")).hexdigest()


def _same(got: Any, right: Any, atol: float) -> bool:
    if isinstance(got, Other) or isinstance(right, Other):
        return False
    if _is_number(right) and _is_number(got):
        return got == right or _is_close(got, right, atol)
    if isinstance(right, list | tuple):
        if type(got) is not type(right) or len(got) != len(right):
            return False
        return all(_same(one, other, atol) for one, other in zip(got, right, strict=True))
    if isinstance(right, dict):
        return isinstance(got, dict) and _same_pairs(got, right, atol)
    if isinstance(right, set | frozenset) and isinstance(got, set | frozenset):
        return got == right or _same(sorted(got), sorted(right), atol)
    return bool(got == right)


def _as_set(value: Collection[Any]) -> set[Any]:
    parts = list(value)
    refuse_alike(parts)
    return set(parts)


def _same_pairs(got: dict[Any, Any], right: dict[Any, Any], atol: float) -> bool:
    if got.keys() == right.keys():
        return all(_same(got[key], value, atol) for key, value in right.items())
    return _same(sorted(got.items(), key=_key), sorted(right.items(), key=_key), atol)


def _key(pair: tuple[Any, Any]) -> Any:
    return pair[0]


def _is_close(got: complex, right: complex, atol: float) -> bool:
    """Return whether a number is near enough; a whole number only where the row has an `atol`."""
    if isinstance(right, int) and atol == 0:
        return False
    one, other = complex(got), complex(right)
    return _is_near(one.real, other.real, atol) and _is_near(one.imag, other.imag, atol)


def _is_near(got: float, right: float, atol: float) -> bool:
    if math.isnan(got) or math.isnan(right):
        return math.isnan(got) and math.isnan(right)
    if math.isinf(got) or math.isinf(right):
        return got == right
    return abs(got - right) <= (atol or _ATOL) + _RTOL * abs(right)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex)


def _truth(value: Any) -> bool:
    return value if isinstance(value, bool) else value is not None


def _is_root(got: Any, right: Any, arguments: Sequence[Any], atol: float) -> bool:
    """Return whether a number is a root, or at least as near to one as the canonical solution's.

    With large coefficients no float brings the polynomial within `atol` of 0.
    """
    if not isinstance(got, int | float):
        return False
    (coefficients,) = arguments
    return _height(coefficients, got) <= max(atol, _height(coefficients, right))


def _height(coefficients: Sequence[float], place: float) -> float:
    total = 0.0
    for power, coefficient in enumerate(coefficients):
        total += coefficient * math.pow(place, power)
    return abs(total)


def _spelled(value: Any) -> str:
    """Spell a value so that equal ones, and floats that are nearly equal, are spelled alike."""
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_spelled(part) for part in value]
        if isinstance(value, set | frozenset):
            return f"set({','.join(sorted(parts))})"
        return f"{type(value).__name__}({','.join(parts)})"
    if isinstance(value, dict):
        pairs = [f"{_spelled(key)}:{_spelled(part)}" for key, part in value.items()]
        return f"dict({','.join(sorted(pairs))})"
    if isinstance(value, Other):
        return f"<{value.name}>"
    if isinstance(value, complex) and value.imag != 0:
        return f"complex({_spelled(value.real)},{_spelled(value.imag)})"
    if isinstance(value, complex):
        value = value.real
    if isinstance(value, float) and not value.is_integer():
        value = float(f"{value:.{_DIGITS}g}")
    # Booleans and whole numbers equal floats: 1 == 1.0 == True, 0 == -0.0.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return hex(value) if isinstance(value, int) else repr(value)
