"""What the user can do wrong, one class per kind of mistake.

A `UserError` carries one clear line that says what was wrong and what would be right.  The command line prints that line
and exits with 2; anything else that is raised is our fault and exits with 1.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

_SHOWN = 80  # characters of a value in a message
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 64  # Python 3.11 takes no arguments


class UserError(Exception):
    """The input is wrong, not the library.  `str(error)` is the whole message."""


class ConfigError(UserError):
    """A configuration has an unknown key, a wrong type, or values that contradict each other."""


class UnsupportedModelError(UserError):
    """The model's family or one of its features is not implemented; the message names it."""


class CheckpointError(UserError):
    """A checkpoint does not fit its config: every missing, extra and misshaped tensor is listed in the one message."""


class AdapterError(UserError):
    """An adapter directory cannot be used with this library version or this model."""


class InputError(UserError):
    """A question, prompt, branch or option cannot be used as given."""


class ContextLengthError(InputError):
    """The largest position that a call would use lies beyond the model's context window."""


class ModelMismatchError(UserError):
    """A cache or an adapter was made by another model than the one that is asked to read it."""


class NotFiniteError(UserError):
    """Logits, or a cache, hold NaN or infinities: the weights overflow in this dtype, or are not finite themselves."""


class MemoryLimitError(UserError):
    """The device has not enough memory for this call; the message says what to lower."""


class EngineError(UserError):
    """Nothing more can be run: an engine was closed, or lost its memory for good."""


class DataError(UserError):
    """A data file or record cannot be used; the message names the file and the line, or the record."""


class TrainingError(UserError):
    """A training run cannot go on; the message says where it stands and what is left."""


class SandboxError(UserError):
    """No sandbox is to be had here; the message says what to install, or what the kernel lacks."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host ran out of memory; JAX has no class of its own for that."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def listing(items: Sequence[object], separator: str = "; ", most: int = 8) -> str:
    """Spell the first items of a list for a message, and say how many more there are."""
    told = separator.join(str(item) for item in items[:most])
    left = len(items) - most
    return f"{told}{separator}and {left} more" if left > 0 else told


def shown(value: object) -> str:
    """Describe a value on one line that any terminal can print; of a long one the start."""
    try:
        text = _SHORT.repr(value)
    except Exception as failed:  # noqa: BLE001  the repr of a caller's object is the caller's code
        text = f"<{type(value).__name__} whose repr raises {type(failed).__name__}>"
    text = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
