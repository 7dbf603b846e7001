"""An exercise: what a small Python function is to do, and functions that do it right and wrong.

    exercise_text(_above, ...)   def measure(values, limit): ... as a worker would have written it
    _above([3, 9, 7], 4)         2

The text is the function's own source, and what a version returns is what the function returns: no
text is ever run.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, TypeAlias

Function: TypeAlias = Callable[..., int]

# Variables that may stand for each other in a text; the first of each is what the source has.
_SYNONYMS = (
    ("numbers", "values", "items"),
    ("number", "value", "item"),
    ("count", "found", "hits"),
    ("total", "result", "amount"),
    ("best", "longest", "top"),
    ("limit", "bound", "threshold"),
    ("text", "word", "line"),
    ("letter", "char", "sign"),
)


@dataclasses.dataclass(frozen=True)
class Exercise:
    """What a function is to do; how to do it right, and wrong with what is wrong with it.

    says: the docstring.  wrong: function -> its flaw, as "counts from 1".  draw: arguments, which
    several exercises share, so that they do not tell which exercise it is.
    """

    name: str
    says: str
    right: Sequence[Function]
    wrong: Mapping[Function, str]
    draw: Callable[[Random], tuple[Any, ...]]

    def wrong_with(self, arguments: Sequence[Any]) -> dict[Function, str]:
        """Return the wrong functions whose flaw shows with these arguments."""
        value = self.right[0](*arguments)
        found = {}
        for function, flaw in self.wrong.items():
            if function(*arguments) != value:
                found[function] = flaw
        return found


def exercise_text(function: Function, name: str, says: str, rng: Random) -> str:
    """Return the text of a function under another name, with its docstring and other variables."""
    text = _source(function).replace(f"def {function.__name__}(", f"def {name}(", 1)
    head, body = text.split("\n", 1)
    written = f'{head}\n    """{says}"""\n{body}'
    for names in _SYNONYMS:
        # Not behind a dot: numbers.count is no variable.
        written = re.sub(rf"(?<!\.)\b{names[0]}\b", rng.choice(names), written)
    return written.rstrip()


@functools.cache
def _source(function: Function) -> str:
    return inspect.getsource(function)
