"""A second look: the model's own answer, sampled from the question alone, in place of the workers' branches.

What the adapter gains from such a branch, it would gain from any further sample; only what `branches` gains on top of it
comes from the workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from psynth_jax.branches import Branches
from psynth_jax.evaluation.tasks import Question
from psynth_jax.synthesis.pipeline import ParallelSynthesis

TEMPERATURE = 0.7  # a greedy answer would repeat what `question` says


def own_branches(synth: ParallelSynthesis, questions: Sequence[Question], max_new_tokens: int, seed: int) -> Branches:
    """Have the base model answer each question alone; return what it writes as the one branch of the question.

    The tokens are encoded as fixed texts are, behind the adapter's sink, so that they are read as `branches` are.  An answer
    depends on the question and the seed, not on the other questions of the batch.

    Raises `ContextLengthError` where prompt and answer do not fit the context window.
    """
    prompts = [[question.query] for question in questions]
    seeds = [[_seed_of(question, seed)] for question in questions]
    written = synth.work(prompts, max_new_tokens, TEMPERATURE, seed=seeds)
    # A branch holds at least one token: of an answer that ends at once the end token is all that was written.
    nothing = sorted(synth.model.stop_ids)[:1]
    texts = []
    for group in written.token_ids:
        texts.append([ids or nothing for ids in group])
    return synth.encode(texts)


def _seed_of(question: Question, seed: int) -> int:
    """Return a seed of the question's own: the same one would draw the same random numbers for all questions."""
    name = f"{seed} {question.task} {question.id}"
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big")
