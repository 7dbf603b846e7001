"""What lower precision costs: log-probabilities of the same answer through the same branches, against float32.

Workers write and the synthesizer answers once, in float32.  Every variant then computes the caches of what the workers wrote
in its own numbers, and scores that answer, token by token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.errors import InputError
from psynth_jax.model import Model
from psynth_jax.prompts import load_roles, worker_prompts
from psynth_jax.synthesis.pipeline import ParallelSynthesis

QUESTION = "Why is the sky blue, and why are sunsets red?"
# dtype of weights and activations, of branch caches
VARIANTS = (("float32", "int8"), ("bfloat16", "bfloat16"), ("bfloat16", "int8"))


def error(load: Callable[[str], Model], workers: int, worker_tokens: int, answer_tokens: int) -> dict[str, Any]:
    """Measure all variants.

    Args:
      load: dtype -> the model in it.

    Raises `InputError` for sizes out of range.
    """
    roles = load_roles()
    if min(workers, worker_tokens, answer_tokens) < 1 or workers > len(roles):
        raise InputError(f"workers must be 1 to {len(roles)}, worker tokens and answer tokens at least 1")
    answered, differences = None, []
    for dtype in ("float32", "bfloat16"):  # one model in memory at a time
        model = load(dtype)
        answered = answered or _answered(model, workers, worker_tokens, answer_tokens)
        differences += [_difference(model, answered, *each) for each in VARIANTS if each[0] == dtype]
        del model
    assert answered is not None
    return {
        "cached_tokens": sum(len(text) for text in answered.texts),
        "answer_tokens": len(answered.answer),
        "mean_log_probability": float(np.mean(answered.scores)),
        "variants": differences,
    }


@dataclasses.dataclass(frozen=True)
class _Answered:
    """A question, what its workers were told and wrote, the answer in tokens and its log-probabilities, in float32."""

    question: Any
    prompts: list[Any]
    texts: list[list[int]]
    answer: list[int]
    scores: HostArray


def _answered(model: Model, workers: int, worker_tokens: int, answer_tokens: int) -> _Answered:
    synth, (question, prompts) = ParallelSynthesis(model), _asked(model, workers)
    texts = synth.work(prompts, max_new_tokens=worker_tokens).token_ids
    branches = synth.encode(texts, prompts)
    answer = synth.synthesize(question, branches, max_new_tokens=answer_tokens).token_ids
    return _Answered(question, prompts, texts, answer, np.asarray(synth.score(question, answer, branches)))


def _difference(model: Model, answered: _Answered, dtype: str, cache_dtype: str) -> dict[str, Any]:
    synth = ParallelSynthesis(model, cache_dtype=cache_dtype)
    branches = synth.encode(answered.texts, answered.prompts)
    difference = np.abs(np.asarray(synth.score(answered.question, answered.answer, branches)) - answered.scores)
    errors = {"mean_error": float(difference.mean()), "largest_error": float(difference.max())}
    return {"dtype": dtype, "cache_dtype": cache_dtype, **errors}


def _asked(model: Model, workers: int) -> tuple[Any, list[Any]]:
    """Return a question and what each worker is told; random tokens for a model without a tokenizer."""
    if model.tokenizer is not None:
        return QUESTION, worker_prompts(QUESTION, load_roles(), workers=workers)
    rng = np.random.default_rng(0)
    question, *prompts = rng.integers(0, model.config.vocab_size, (workers + 1, 32)).tolist()
    return question, prompts
