"""Time to first token: from branches that are ready, against prefilling the same tokens as text; and to each token after it.

Decoding reads every cached token once for each new one; what twice as many cost is measured too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from psynth_jax.bench.timing import in_turn
from psynth_jax.branches import Branches
from psynth_jax.errors import InputError
from psynth_jax.model import Model
from psynth_jax.synthesis.inputs import check_window
from psynth_jax.synthesis.pipeline import ParallelSynthesis

DECODED = 16  # tokens after the first that are timed


def ttft(
    model: Model, source: str, branches: int, branch_tokens: int, prompt_tokens: int, repeats: int, *, against_torch: bool
) -> dict[str, Any]:
    """Measure both routes on random tokens, and with `against_torch` transformers' prefill of the same tokens.

    The text route prefills `branches * branch_tokens + prompt_tokens` tokens, the branch route `prompt_tokens`.  Decoding,
    from these branches and from twice as many, counts the tokens after the first.
    """
    if min(branches, branch_tokens, prompt_tokens, repeats) < 1:
        raise InputError("branches, branch tokens, prompt tokens and repeats must be at least 1")
    check_window(model, 0, branches * branch_tokens + prompt_tokens, 1, "the pasted text")
    check_window(model, branch_tokens, prompt_tokens, DECODED + 1, "the answer from branches")
    rng = np.random.default_rng(0)
    texts, more = rng.integers(0, model.config.vocab_size, (2, branches, branch_tokens)).tolist()
    prompt = rng.integers(0, model.config.vocab_size, prompt_tokens).tolist()
    synth = ParallelSynthesis(dataclasses.replace(model, stop_ids=frozenset()))  # that stops at no token
    made = synth.encode(texts)
    twice = Branches.join(made, synth.encode(more))

    def token(read: Branches) -> float:
        return 1 / float(synth.synthesize(prompt, read, max_new_tokens=DECODED + 1).decode_tokens_per_s)

    measures = {
        "text": lambda: synth.synthesize_text(prompt, texts, max_new_tokens=1).ttft_s,
        "branches": lambda: synth.synthesize(prompt, made, max_new_tokens=1).ttft_s,
        "token": lambda: token(made),
        "token twice": lambda: token(twice),
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
        "token_s": seconds["token"],
        "token_twice_s": seconds["token twice"],
        "twice_over_once": seconds["token twice"] / seconds["token"],
        "repeats": repeats,
    }
    if against_torch:
        found |= {"torch_prefill_s": seconds["torch"], "text_over_torch": seconds["text"] / seconds["torch"]}
    return found
