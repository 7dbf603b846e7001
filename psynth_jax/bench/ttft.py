"""Time to first token: from branches that are ready, against prefilling the same tokens as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from psynth_jax.bench.timing import in_turn
from psynth_jax.errors import InputError
from psynth_jax.model import Model
from psynth_jax.synthesis.inputs import check_window
from psynth_jax.synthesis.pipeline import ParallelSynthesis


def ttft(
    model: Model, source: str, branches: int, branch_tokens: int, prompt_tokens: int, repeats: int, *, against_torch: bool
) -> dict[str, Any]:
    """Measure both routes on random tokens, and with `against_torch` transformers' prefill of the same tokens.

    The text route prefills `branches * branch_tokens + prompt_tokens` tokens, the branch route `prompt_tokens`.
    """
    if min(branches, branch_tokens, prompt_tokens, repeats) < 1:
        raise InputError("branches, branch tokens, prompt tokens and repeats must be at least 1")
    check_window(model, 0, branches * branch_tokens + prompt_tokens, 1, "the pasted text")
    rng = np.random.default_rng(0)
    texts = rng.integers(0, model.config.vocab_size, (branches, branch_tokens)).tolist()
    prompt = rng.integers(0, model.config.vocab_size, prompt_tokens).tolist()
    synth = ParallelSynthesis(model)
    made = synth.encode(texts)
    measures = {
        "text": lambda: synth.synthesize_text(prompt, texts, max_new_tokens=1).ttft_s,
        "branches": lambda: synth.synthesize(prompt, made, max_new_tokens=1).ttft_s,
    }
    if against_torch:
        from psynth_jax.bench import against_torch as torch_bench

        measures["torch"] = torch_bench.prefill(
            source, str(model.decoder.dtype), [token for text in texts for token in text] + prompt
        )
    seconds = in_turn(measures, repeats)
    found = {
        "branches": branches,
        "branch_tokens": branch_tokens,
        "prompt_tokens": prompt_tokens,
        "ttft_text_s": seconds["text"],
        "ttft_branches_s": seconds["branches"],
        "ratio": seconds["text"] / seconds["branches"],
        "repeats": repeats,
    }
    if against_torch:
        found |= {"torch_prefill_s": seconds["torch"], "text_over_torch": seconds["text"] / seconds["torch"]}
    return found
