r"""What workers and the synthesizer are asked, in words of this library.

    worker        how to work, how to end; then the question     the same for all workers
    synthesizer   the question; then how to end

The synthesizer need not be told that it reads caches: `agents` says so where it is asked.
Chat templates are applied elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

_NUMBER = r"End with the final answer, one number without a unit, in \boxed{}."
_LETTER = r"End with the letter of the right option ({letters}), and nothing else, in \boxed{{}}."
_CODE = (
    "Write one self-contained Python program: it has every import, helper and the function that is"
    " asked for. Put all of it into one ```python block, with nothing in the block but code."
)
_WORK = "Work through the problem step by step."


def number_prompts(problem: str) -> tuple[str, str]:
    """Return what a worker and what the synthesizer is asked about a number."""
    worker = f"{_WORK} {_NUMBER}\n\nProblem:\n{problem}"
    return worker, f"{problem}\n\n{_NUMBER}"


def choice_prompts(question: str, letters: Sequence[str]) -> tuple[str, str]:
    """Return what a worker and what the synthesizer is asked; the question shows the options."""
    spelled = ", ".join(letters[:-1]) + f" or {letters[-1]}"
    ending = _LETTER.format(letters=spelled)
    worker = f"{_WORK} {ending}\n\nQuestion:\n{question}"
    return worker, f"{question}\n\n{ending}"


def code_prompts(problem: str) -> tuple[str, str]:
    """Return what a worker and what the synthesizer is asked about a function."""
    return f"{_CODE}\n\nThe problem:\n{problem}", f"{problem}\n\n{_CODE}"


def lettered(question: str, options: Sequence[tuple[str, str]]) -> str:
    """Return a question with its options below it, a line each: (A) the first one."""
    lines = [f"({letter}) {option}" for letter, option in options]
    return "\n".join([question, "", *lines])
