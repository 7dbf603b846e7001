"""The attention sink: which tokens it is, and examples that have it."""

from __future__ import annotations

import numpy as np
import pytest

from psynth_jax.data.example import Example, ExampleList, lengths_of
from psynth_jax.data.sink import WithSink, after_sink, chat_sink
from psynth_jax.errors import ConfigError
from psynth_jax.prompts import question_messages, synthesis_messages
from psynth_jax.tokenizer import Tokenizer
from tests.training.examples import random_examples


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


def test_examples_have_it_as_their_first_branch_and_count_it() -> None:
    plain = ExampleList("random", [*random_examples(5), Example("none", "random", *[np.arange(3, dtype=np.int32)] * 3, ())])
    sinking = WithSink(plain, (7, 8, 9))
    assert len(sinking) == 6 and sinking.task == "random" and sinking.sink == (7, 8, 9)
    for number, (before, lengths) in enumerate(zip([plain[i] for i in range(6)], sinking.lengths, strict=True)):
        after = sinking[number]
        sink, *others = after.branches
        assert (sink.prefix.tolist(), sink.kept.tolist()) == ([], [7, 8, 9])
        assert [x.kept.tolist() for x in others] == [x.kept.tolist() for x in before.branches]
        assert [x.prefix.tolist() for x in others] == [[7, 8, 9, *x.prefix.tolist()] for x in before.branches]
        assert tuple(lengths) == lengths_of(after)
