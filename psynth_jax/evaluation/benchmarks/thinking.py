"""Reasoning models think before they answer: keep what comes after the thought."""

from __future__ import annotations

_END = "</think>"


def after_thinking(written: str) -> str:
    """Return what stands behind the last `</think>`; all of a text without one.

    A thought that was cut off has no end, so it counts as the answer, as in the published rule.
    """
    return written.rpartition(_END)[2]
