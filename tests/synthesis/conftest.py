"""Synthesizers that the tests of this folder share, because a compiled step is the expensive part of a test.

None of them is changed by a test: one that needs another mapper or other positions makes its own over the same model, and
so over the same programs and the same pool.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

import psynth_jax as ps
from tests.tiny import random_lora, random_mapper, talking_model, tiny_model


@pytest.fixture(scope="session")
def synth() -> ps.ParallelSynthesis:
    """Tiny model for token ids, with an adapter and a mapper that both change every number."""
    model = tiny_model()
    synthesizer = ps.ParallelSynthesis(model, adapter=random_lora(model.config, 1))
    synthesizer.set_mapper(random_mapper(1))
    return synthesizer


@pytest.fixture(scope="session")
def plain(synth: ps.ParallelSynthesis) -> ps.ParallelSynthesis:
    """The same model without adapter and mapper."""
    return ps.ParallelSynthesis(synth.model)


@pytest.fixture(scope="session")
def talking() -> ps.ParallelSynthesis:
    """A tiny model with a tokenizer and a chat template, without an adapter."""
    pytest.importorskip("transformers", reason="tokenizers are transformers'")
    return ps.ParallelSynthesis(talking_model())


@pytest.fixture(scope="session")
def model() -> ps.Model:
    """The model of `engine`."""
    return tiny_model(layers=2)


@pytest.fixture
def engine(model: ps.Model) -> Iterator[ps.Engine]:
    """An engine of which nothing is left when a test ends."""
    engine = ps.Engine(model, random_lora(model.config, 1))
    engine.synth.set_mapper(random_mapper(1))
    yield engine
    engine.close()
    gc.collect()
    assert engine.stats()["used_tokens"] == 0
