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
from psynth_jax.axes import HostArray
from psynth_jax.branch import Branch
from psynth_jax.branches import Branches
from psynth_jax.config import DecoderConfig
from psynth_jax.errors import ContextLengthError, InputError, ModelMismatchError, shown
from psynth_jax.identity import short
from psynth_jax.model import Model
from psynth_jax.tokenizer import Tokenizer
from psynth_jax.unicode_text import checked_text

Text: TypeAlias = str | Sequence[int] | HostArray
Prompt: TypeAlias = str | Sequence[int] | HostArray | Sequence[Mapping[str, Any]]


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
    kinds = "texts, chats or lists of token ids, or one list of these for each question"
    raise InputError(f"{what} must hold {kinds}; it is {shown(items)}")


def as_questions(question: Any) -> tuple[list[Any], bool]:
    """Return a list of questions, and whether the caller gave a list."""
    if is_prompt(question):
        return [question], False
    if isinstance(question, list | tuple) and question and all(is_prompt(item) for item in question):
        return list(question), True
    kinds = "a text, a chat or a list of token ids, or a list of these"
    raise InputError(f"a question must be {kinds}, not {shown(question)}")


def tokenizer_of(model: Model) -> Tokenizer:
    """Return the model's tokenizer.  Raises `InputError` when it has none."""
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer: give token ids instead of text")
    return model.tokenizer


def checked(model: Model, ids: Sequence[int], what: str) -> tuple[int, ...]:
    """Return token ids as a tuple.  Raises `InputError` when there is none, or one is outside the vocabulary."""
    if not is_tokens(ids):
        raise InputError(f"{what} must be a text, a chat or a list of token ids, not {shown(ids)}")
    tokens = tuple(int(token) for token in ids)
    if not tokens:
        raise InputError(f"{what} is empty")
    wrong = next((token for token in tokens if not 0 <= token < model.config.vocab_size), None)
    if wrong is not None:
        raise InputError(f"{what} has the token id {wrong}; the vocabulary has 0 to {model.config.vocab_size - 1}")
    return tokens


def chat_ids(model: Model, messages: Sequence[Mapping[str, Any]], what: str) -> tuple[int, ...]:
    """Render a conversation with the model's chat template and tokenise it; the template's errors name the model."""
    tokenizer = tokenizer_of(model)
    try:
        ids = tokenizer.chat(messages)
    except InputError as error:
        raise InputError(f"{what}, for {model.name}: {error}") from None
    return checked(model, ids, what)


def text_ids(model: Model, text: str, what: str) -> tuple[int, ...]:
    """Tokenise a text with nothing added.  Raises `InputError` when it is empty or not Unicode."""
    text = checked_text(text, what)
    if not text.strip():
        raise InputError(f"{what} is empty")
    return checked(model, tokenizer_of(model).encode(text), what)


def plain_ids(model: Model, text: Any, what: str) -> tuple[int, ...]:
    """Tokenise a text with nothing added; a chat is rendered by its template."""
    if isinstance(text, str):
        return text_ids(model, text, what)
    if is_chat(text):
        return chat_ids(model, text, what)
    return checked(model, text, what)


def prompt_ids(model: Model, prompt: Any, what: str, wording: Callable[[str], list[prompts.Message]]) -> tuple[int, ...]:
    """Tokenise a prompt: a text becomes the messages that `wording` makes of it, rendered by the chat template."""
    if isinstance(prompt, str):
        text = checked_text(prompt, what)
        if not text.strip():
            raise InputError(f"{what} is empty")
        return chat_ids(model, wording(text), what)
    return plain_ids(model, prompt, what)


def concatenated_ids(model: Model, question: Any, texts: Sequence[Any]) -> tuple[int, ...]:
    """Tokenise a question behind the workers' texts: texts as one chat, token ids one after the other."""
    if isinstance(question, str) and all(isinstance(text, str) for text in texts):
        for index, text in enumerate(texts):
            if not checked_text(text, f"text {index + 1}").strip():
                raise InputError(f"text {index + 1} is empty")
        return prompt_ids(model, question, "the question", lambda asked: prompts.baseline_messages(asked, texts))
    tokens: list[int] = []
    for index, text in enumerate(texts):
        tokens += plain_ids(model, text, f"text {index + 1}")
    return (*tokens, *prompt_ids(model, question, "the question", prompts.synthesis_messages))


def check_window(model: Model, offset: int, prompt: int, new_tokens: int, what: str) -> None:
    """Raise `ContextLengthError` when the largest position used lies beyond the model's window.

    offset: tokens of the longest branch; 0 where no branch is read.
    """
    window = model.config.max_positions
    if offset + prompt + new_tokens > window:
        branches = f"the longest branch has {offset} tokens, " if offset else ""
        raise ContextLengthError(
            f"{what} does not fit the context window of {window} positions: {branches}the prompt has {prompt}, and "
            f"{new_tokens} more are asked for; {max(window - offset - prompt, 0)} would fit"
        )


def check_branches(model: Model, branches: Branches) -> None:
    """Check that branches can be read by a model.

    Raises:
      ModelMismatchError: another model made them, or their caches or tokens do not fit this one.
      InputError: a question has no branch, or a branch says nothing.
    """
    if not model.identity.matches(branches.fingerprint):
        mine, theirs = short(model.fingerprint), short(branches.fingerprint)
        raise ModelMismatchError(
            f"these branches were made by another model than {model.name}: by weights {theirs}, not {mine}"
        )
    for number, group in enumerate(branches.questions):
        if not group:
            raise InputError("there is no branch to read: give at least one, or none at all (branches=None)")
        for index, branch in enumerate(group):
            what = numbered("branch", number, index, branches.batched)
            if not branch.segments:
                raise InputError(f"{what} is empty: its worker stopped at once; select the others, as in branches[[0, 2]]")
            _check_branch(model.config, branch, what)


def _check_branch(config: DecoderConfig, branch: Branch, what: str) -> None:
    """Check what a file can get wrong, and no branch that was made here has."""
    wrong = next((token for token in branch.token_ids if not 0 <= token < config.vocab_size), None)
    if wrong is not None:
        raise ModelMismatchError(f"{what} has the token id {wrong}; the vocabulary has 0 to {config.vocab_size - 1}")
    if branch.shift + branch.span > config.max_positions:
        raise ModelMismatchError(
            f"{what} was written up to position {branch.shift + branch.span}; the model has {config.max_positions}"
        )
    expected = (config.layers, config.kv_heads, config.head_width)
    for segment in branch.segments:
        found = segment.held.shape
        if found != expected:
            raise ModelMismatchError(
                f"the cache of {what} has {found[0]} layers of {found[1]} heads of width {found[2]}; "
                f"the model has {expected[0]} of {expected[1]} of {expected[2]}"
            )


def check_callback(on_token: object) -> None:
    """Raise `InputError` for a callback that cannot be called."""
    if on_token is not None and not callable(on_token):
        raise InputError(f"on_token is {shown(on_token)}; it must be a function of one StreamedToken, or None")


def numbered(kind: str, question: int, index: int, batched: bool) -> str:
    """Name a branch, prompt or text in a message, counted from 1."""
    return f"{kind} {index + 1} of question {question + 1}" if batched else f"{kind} {index + 1}"
