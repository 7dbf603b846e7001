r"""The one form in which a text that shows its working ends: a last line `Answer: 18`.

    "14 + 9 = 23, less 5 makes 18.\nAnswer: 18"   <──>   working, "18"

Targets are written in it, and `psynth eval --final-answer` reads it.
"""

from __future__ import annotations

FINAL_ANSWER = "Answer:"


def with_final_answer(working: str, answer: str) -> str:
    """Put an answer behind its working."""
    return f"{working}\n{FINAL_ANSWER} {answer}"


def final_answer(written: str) -> str:
    """Return what stands behind the last `Answer:`, to the end of its line, or all of a text."""
    _, found, rest = written.rpartition(FINAL_ANSWER)
    if not found:
        return written.strip()
    lines = rest.strip().splitlines()
    return lines[0].strip() if lines else ""
