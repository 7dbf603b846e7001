"""What the user can do wrong, one class per kind of mistake.

A `UserError` carries one clear line that says what was wrong and what would be right.  The command line prints that line
and exits with 2; anything else that is raised is our fault and exits with 1.
"""


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


class DataError(UserError):
    """A data file or record cannot be used; the message names the file and the line, or the record."""


class TrainingError(UserError):
    """A training run cannot go on; the message says where it stands and what is left."""
