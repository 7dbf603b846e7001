"""Variables that a chat template reads besides the messages, such as `enable_thinking`.

They decide what a model is asked, so they are kept wherever that must be known again: with prepared data, with an adapter,
with the settings of an evaluation.  Values are JSON values; a file without the field means no variables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from psynth_jax.errors import InputError, UserError, shown
from psynth_jax.unicode_text import checked_text, checked_texts

TemplateVariables: TypeAlias = Mapping[str, Any]

# What the library itself passes to the template, or to the function that renders it.
_RESERVED = frozenset(
    {
        "conversation",
        "messages",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)


def checked_variables(value: object, what: str = "template", error: type[UserError] = InputError) -> dict[str, Any]:
    """Return template variables as a dict of JSON values; None is none of them.

    Raises `error`, which begins with `what`, for anything but a mapping from names to JSON values, and for names that the
    library sets itself.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise error(f'{what} must be a mapping, as in {{"enable_thinking": False}}, not {shown(value)}')
    for name in value:
        if not checked_text(name, f"a name in {what}", error).isidentifier():
            raise error(f"{what}: {shown(name)} is not the name of a template variable")
        if name in _RESERVED:
            raise error(f"{what}: {name} is set by the library and cannot be given")
    checked_texts(value, what, error)
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise error(f"{what} must hold JSON values (true, 3, a text, a list, ...), not {shown(dict(value))}") from None
    return found


def described(variables: TemplateVariables) -> str:
    """Return variables for a message, as one would write them on the command line."""
    written = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in sorted(variables.items())]
    return ", ".join(written) or "no template variables"
