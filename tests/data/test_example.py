"""Tokenised examples: every part by itself, templates where they belong."""

from __future__ import annotations

import numpy as np
import pytest

from psynth_jax.data.example import tokenise
from psynth_jax.data.record import BranchText, Record
from psynth_jax.prompts import baseline_messages, synthesis_messages
from psynth_jax.tokenizer import Tokenizer
from tests.tiny import byte_tokenizer

RECORD = Record("r1", "qa", "Who?", (BranchText("Ann wrote it.", "Title\n"), BranchText("Bob read it.")), "Ann")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


def test_parts_are_what_each_spells(tokenizer: Tokenizer) -> None:
    example = tokenise(RECORD, tokenizer, end_id=5)
    assert tokenizer.decode([*example.target[:-1]]) == "Ann" and example.target[-1] == 5
    assert [tokenizer.decode([*branch.prefix]) for branch in example.branches] == ["Title\n", ""]
    assert [tokenizer.decode([*branch.kept]) for branch in example.branches] == ["Ann wrote it.", "Bob read it."]
    assert example.branches[0].length == len("Title\nAnn wrote it.")
    assert [*example.prompt] == tokenizer.chat(synthesis_messages("Who?"))
    assert [*example.pasted] == tokenizer.chat(baseline_messages("Who?", ["Ann wrote it.", "Bob read it."]))
    assert all(part.dtype == np.int32 for part in (example.prompt, example.pasted, example.target))
