"""Numbers with their nouns, for messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return "1 row", "2 rows", "12,000 rows"; nouns that take an s only."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
