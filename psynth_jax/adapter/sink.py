"""The attention sink of a context of branches: its first tokens, once, as a branch of its own.

Attention leans on the first token of a context.  A text that is encoded by itself brings one; what
a live worker wrote brings none, its context began with the prompt; and several branches bring
several, or none:

    texts by themselves      [^ text 1] [^ text 2]                   one each
    after a prompt           [text 1] [text 2]                       none (the prompt is not kept)
    with a sink              [^ sink] [text 1] [text 2]              exactly one: texts are encoded after the sink

The sink is what every chat begins with, so a worker that was given a chat has written after it, as
it is.  Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from psynth_jax.errors import ConfigError
from psynth_jax.prompts import question_messages
from psynth_jax.tokenizer import Tokenizer


def chat_sink(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens with which every chat begins, up to what its user says.

    Raises `ConfigError` when chats begin with nothing in common, `InputError` for a tokenizer without a chat template.
    """
    one, other = (tokenizer.chat(question_messages(text)) for text in ("a", "1"))
    same = [left == right for left, right in zip(one, other, strict=False)]
    length = same.index(False) if False in same else 0
    if not length:
        raise ConfigError("this model's chats have no first token in common: there is no sink, set trainable.sink to false")
    return tuple(one[:length])


def after_sink(sink: Sequence[int], prefix: Sequence[int]) -> tuple[int, ...]:
    """Return a branch's prefix with the sink before it, unless it begins with the sink already."""
    return tuple(prefix) if tuple(prefix[: len(sink)]) == tuple(sink) else (*sink, *prefix)
