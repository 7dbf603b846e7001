"""An engine over a tiny model, for tests of requests."""

from __future__ import annotations

import numpy as np

import psynth_jax as ps
from psynth_jax.synthesis.requests import RequestResult
from tests.tiny import token_ids

PROMPTS = [token_ids(seed, length) for seed, length in enumerate((5, 21, 40, 9))]
QUESTION = token_ids(50, 12)


def same(one: RequestResult, other: RequestResult) -> None:
    """Check that two results are the same but for rounding."""
    assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def alone(engine: ps.Engine, request: ps.Request) -> RequestResult:
    """Answer a request of which nothing was run before, with nobody beside it."""
    engine.synth.runner.forget_prompts()
    (result,) = engine.run([request])
    return result
