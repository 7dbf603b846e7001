"""Text that callers give.

Python texts may hold lone surrogates, which no UTF-8 text has: JSON escapes, file names and undecodable arguments bring
them in, and no tokenizer takes them.  Every text of a caller passes `checked_text` before anything else reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psynth_jax.errors import InputError, UserError, shown


def checked_text(value: object, what: str, error: type[UserError] = InputError) -> str:
    """Return a text that UTF-8 can encode.  Raises `error`, which begins with `what`, for anything else."""
    if not isinstance(value, str):
        raise error(f"{what} must be a text, not {shown(value)}")
    # A subclass may carry methods of its own; what is kept is a plain text.
    text = str.__str__(value)
    place = surrogate(text)
    if place is not None:
        found = f"U+{ord(text[place]):04X} at character {place + 1}"
        raise error(f"{what} has a lone surrogate ({found}), which is not a Unicode character")
    return text


def checked_texts(value: Any, what: str, error: type[UserError] = InputError) -> None:
    """Check every text inside of mappings and lists, keys included, as `checked_text` does."""
    pending = [value]
    while pending:  # not recursive: values may be nested deeper than Python recurses
        item = pending.pop()
        if isinstance(item, str):
            checked_text(item, what, error)
        elif isinstance(item, bytes | bytearray):
            raise error(f"{what} must be a text, not {shown(item)}")
        elif isinstance(item, Mapping):
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)


def surrogate(text: str) -> int | None:
    """Return the place of the first lone surrogate of a text; None if UTF-8 can encode it."""
    try:
        text.encode()
    except UnicodeEncodeError as failed:
        return failed.start
    return None
