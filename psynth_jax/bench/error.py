"""What lower precision costs: log-probabilities of the same answer through the same branches, against float32.

Workers write and the synthesizer answers once, in float32.  Every variant then computes the caches of what the workers wrote
in its own numbers, and scores that answer, token by token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from psynth_jax.errors import InputError
from psynth_jax.model import Model
from psynth_jax.synthesis.pipeline import ParallelSynthesis
from psynth_jax.synthesis.prompts import load_roles, worker_prompts

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
    models = {"float32": load("float32")}
    exact = ParallelSynthesis(models["float32"])
    question, prompts = _asked(models["float32"], workers)
    texts = exact.work(prompts, max_new_tokens=worker_tokens).token_ids
    answer = exact.synthesize(question, exact.encode(texts, prompts), max_new_tokens=answer_tokens).token_ids
    expected = exact.score(question, answer, exact.encode(texts, prompts))
    variants = []
    for dtype, cache_dtype in VARIANTS:
        if dtype not in models:
            models = {dtype: load(dtype)}  # the other one is not needed any more
        synth = ParallelSynthesis(models[dtype], cache_dtype=cache_dtype)
        difference = np.asarray(synth.score(question, answer, synth.encode(texts, prompts))) - np.asarray(expected)
        variants.append(
            {
                "dtype": dtype,
                "cache_dtype": cache_dtype,
                "mean_error": float(np.abs(difference).mean()),
                "largest_error": float(np.abs(difference).max()),
            }
        )
    return {
        "cached_tokens": sum(len(text) for text in texts),
        "answer_tokens": len(answer),
        "mean_log_probability": float(np.mean(expected)),
        "variants": variants,
    }


def _asked(model: Model, workers: int) -> tuple[Any, list[Any]]:
    """Return a question and what each worker is told; random tokens for a model without a tokenizer."""
    if model.tokenizer is not None:
        return QUESTION, worker_prompts(QUESTION, load_roles(), workers=workers)
    rng = np.random.default_rng(0)
    question, *prompts = rng.integers(0, model.config.vocab_size, (workers + 1, 32)).tolist()
    return question, prompts
