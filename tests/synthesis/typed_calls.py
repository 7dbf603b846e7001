"""What a type checker is told of the main calls: mypy reads this file, nobody runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import jax.numpy as jnp
import numpy as np

import psynth_jax as ps
from psynth_jax.axes import HostArray
from psynth_jax.branches import Branches
from psynth_jax.storage.paths import AnyPath
from psynth_jax.synthesis.session import Session


def one_question(synth: ps.ParallelSynthesis, text: str, ids: list[int], chat: list[dict[str, str]]) -> None:
    branches = synth.work([text, ids])
    assert_type(branches, Branches)
    assert_type(synth.encode([text], prefixes=[None]), Branches)
    assert_type(synth.synthesize(text, branches), ps.SynthesisResult)
    assert_type(synth.synthesize(ids), ps.SynthesisResult)
    assert_type(synth.synthesize(chat, max_new_tokens=3), ps.SynthesisResult)
    assert_type(synth.synthesize(np.array([1, 2])), ps.SynthesisResult)
    assert_type(synth.synthesize_text(text, [text, text]), ps.SynthesisResult)
    assert_type(synth.score(text, ids, branches), HostArray)
    assert_type(synth.score(ids, text), HostArray)
    assert_type(synth.synthesize(text).text, str)


def several_questions(synth: ps.ParallelSynthesis, texts: list[str], ids: list[list[int]]) -> None:
    branches = synth.work([texts, texts])
    assert_type(branches, Branches)
    assert_type(synth.synthesize(texts, branches), list[ps.SynthesisResult])
    assert_type(synth.synthesize(ids, [branches, branches]), list[ps.SynthesisResult])
    assert_type(synth.synthesize_text(texts, [texts, texts]), list[ps.SynthesisResult])
    assert_type(synth.score(texts, texts), list[HostArray])
    assert_type([answer.token_ids for answer in synth.synthesize(texts)], list[list[int]])


def conversations(synth: ps.ParallelSynthesis, branches: Branches) -> None:
    chat = synth.session(branches)
    assert_type(chat, Session)
    assert_type(chat.reply("why?"), ps.SynthesisResult)
    assert_type(chat.tokens, int)


def set_up(messages: Sequence[Mapping[str, Any]]) -> None:
    model = ps.load_model(Path("somewhere"), dtype=jnp.bfloat16)
    assert_type(model, ps.Model)
    synth = ps.ParallelSynthesis(model, template={"enable_thinking": False})
    assert_type(synth.synthesize(messages), ps.SynthesisResult)
    assert_type(synth.template, Mapping[str, Any])
    assert_type(ps.keep_compiled_programs(), AnyPath | None)
