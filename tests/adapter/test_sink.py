"""The attention sink: which tokens it is, and where it goes."""

from __future__ import annotations

import pytest

from psynth_jax.adapter.sink import after_sink, chat_sink
from psynth_jax.errors import ConfigError
from psynth_jax.prompts import question_messages, synthesis_messages
from psynth_jax.tokenizer import Tokenizer


def test_is_what_every_chat_begins_with() -> None:
    tokenizer = Tokenizer.of_bytes()
    sink = chat_sink(tokenizer)
    for messages in (question_messages("Why?"), synthesis_messages("Is it so?")):
        assert tuple(tokenizer.chat(messages)[: len(sink)]) == sink
    assert tokenizer.decode(sink) == "user\n" and len(sink) == 6


def test_refuses_chats_that_begin_with_what_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.of_bytes()
    monkeypatch.setattr(tokenizer.backend, "chat_template", "{{ messages[0]['content'] }}")
    with pytest.raises(ConfigError, match="no first token in common"):
        chat_sink(tokenizer)


def test_is_put_before_a_prefix_once() -> None:
    assert after_sink((1, 2), ()) == (1, 2)
    assert after_sink((1, 2), (3,)) == (1, 2, 3)
    assert after_sink((1, 2), (1, 2, 3)) == (1, 2, 3)
    assert after_sink((1, 2), (1,)) == (1, 2, 1)
    assert after_sink((), (3,)) == (3,)
