"""What a caller may pass, and how it becomes token ids.

    a text         str                        a chat   list of {"role", "content"} messages
    token ids      sequence of int, used as it is: no template, no added tokens

Everything is checked here, before any work is done: empty texts, ids outside the vocabulary, positions beyond the window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from psynth_jax import prompts
from psynth_jax.errors import ContextLengthError, InputError
from psynth_jax.model import Model
from psynth_jax.tokenizer import Tokenizer

Text: TypeAlias = str | Sequence[int]
Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, Any]]


def is_tokens(value: object) -> bool:
    """Whether a value is a sequence of token ids (the empty sequence is)."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and np.issubdtype(value.dtype, np.integer)
    return isinstance(value, list | tuple) and all(
        isinstance(x, int | np.integer) and not isinstance(x, bool) for x in value
    )


def is_chat(value: object) -> bool:
    """Whether a value is a list of chat messages."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(x, Mapping) for x in value)


def is_prompt(value: object) -> bool:
    """Whether a value is one prompt: a text, token ids or a chat."""
    return isinstance(value, str) or is_tokens(value) or is_chat(value)


def by_question(items: Sequence[Any], what: str) -> tuple[list[list[Any]], bool]:
    """Return items grouped by question, and whether the caller gave several questions (a list of lists).

    Raises `InputError` for anything that is neither a list of prompts nor a list of such lists.
    """
    if isinstance(items, str) or is_chat(items) or not isinstance(items, list | tuple) or not items:
        raise InputError(f"{what} must be a list with one entry per branch, or a list of such lists, and not be empty")
    if all(is_prompt(item) for item in items) and not is_tokens(items):
        return [list(items)], False
    nested = [isinstance(item, list | tuple) and len(item) > 0 and all(is_prompt(x) for x in item) for item in items]
    if all(nested) and not is_tokens(items):
        return [list(item) for item in items], True
    raise InputError(f"{what} must hold texts, chats or lists of token ids, or one list of these for each question")


def as_questions(question: Any) -> tuple[list[Any], bool]:
    """Return a list of questions, and whether the caller gave a list."""
    if is_prompt(question):
        return [question], False
    if isinstance(question, list | tuple) and question and all(is_prompt(item) for item in question):
        return list(question), True
    raise InputError("a question must be a text, a chat or a list of token ids, or a list of these")


def tokenizer_of(model: Model) -> Tokenizer:
    """Return the model's tokenizer.  Raises `InputError` when it has none."""
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer: give token ids instead of text")
    return model.tokenizer


def checked(model: Model, ids: Sequence[int], what: str) -> tuple[int, ...]:
    """Return token ids as a tuple.  Raises `InputError` when there is none, or one is outside the vocabulary."""
    if not is_tokens(ids):
        raise InputError(f"{what} must be a text, a chat or a list of token ids, not {ids!r}")
    tokens = tuple(int(token) for token in ids)
    if not tokens:
        raise InputError(f"{what} is empty")
    wrong = next((token for token in tokens if not 0 <= token < model.config.vocab_size), None)
    if wrong is not None:
        raise InputError(f"{what} has the token id {wrong}; the vocabulary has 0 to {model.config.vocab_size - 1}")
    return tokens


def plain_ids(model: Model, text: Any, what: str) -> tuple[int, ...]:
    """Tokenise a text with nothing added; a chat is rendered by its template."""
    if isinstance(text, str):
        if not text.strip():
            raise InputError(f"{what} is empty")
        return checked(model, tokenizer_of(model).encode(text), what)
    if is_chat(text):
        return checked(model, tokenizer_of(model).chat(text), what)
    return checked(model, text, what)


def prompt_ids(model: Model, prompt: Any, what: str, wording: Callable[[str], list[prompts.Message]]) -> tuple[int, ...]:
    """Tokenise a prompt: a text becomes the messages that `wording` makes of it, rendered by the chat template."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError(f"{what} is empty")
        return checked(model, tokenizer_of(model).chat(wording(prompt)), what)
    return plain_ids(model, prompt, what)


def check_window(model: Model, offset: int, prompt: int, new_tokens: int, what: str) -> None:
    """Raise `ContextLengthError` when the largest position used lies beyond the model's window.

    offset: tokens of the longest branch; 0 where no branch is read.
    """
    window = model.config.context_positions if offset else model.config.max_positions
    if offset + prompt + new_tokens > window:
        branches = f"the longest branch has {offset} tokens, " if offset else ""
        local = " that this model's local layers see" if window < model.config.max_positions else ""
        raise ContextLengthError(
            f"{what} does not fit the context window of {window} positions{local}: {branches}the prompt has {prompt}, and "
            f"{new_tokens} more are asked for; {max(window - offset - prompt, 0)} would fit"
        )
