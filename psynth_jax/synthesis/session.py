"""A conversation over branches: every turn reads the same immutable branches, and the dialogue's own cache so far.

turn 1   [ question | answer ]
turn 2   [ question | answer | end of turn, next question | answer ]       only the last two are fed
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from psynth_jax import prompts
from psynth_jax.branches import Branches
from psynth_jax.cache import KVCache
from psynth_jax.errors import InputError
from psynth_jax.synthesis import inputs
from psynth_jax.synthesis.engine import slots_needed
from psynth_jax.synthesis.generate import OnToken, RowOutput, StreamedToken, generate
from psynth_jax.synthesis.pipeline import ParallelSynthesis, SynthesisResult, result_of
from psynth_jax.synthesis.sampling import SamplingOptions, Stop, checked_seed

_MARK = "\u2042answer\u2042"  # stands for an earlier answer when a template is asked what comes after it


class Session:
    """Several turns over the branches of one question (None: over none)."""

    def __init__(self, synth: ParallelSynthesis, branches: Branches | None):
        """Start with an empty dialogue.  Raises `InputError` for a batch of questions: a session has one."""
        groups = synth._checked_groups(branches)
        if groups is not None and not (isinstance(branches, Branches) and not branches.batched):
            raise InputError("a session reads the branches of one question: pick one of the batch, as in branches[0]")
        self._synth = synth
        self._reads_branches = groups is not None
        self._reader, self._offset, self._row_axes = synth._reader(groups, 1)
        self._cached_tokens = sum(branch.span for branch in groups[0]) if groups is not None else 0
        self._cache: KVCache | None = None
        self._filled = np.zeros(1, np.int32)

    @property
    def tokens(self) -> int:
        """Tokens of the dialogue so far, questions and answers."""
        return int(self._filled[0])

    def reply(
        self,
        text: Any,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Stop = (),
        on_token: OnToken | None = None,
    ) -> SynthesisResult:
        """Answer the next turn.  Token ids are fed as they are, after all that was fed before; only a first turn is a chat.

        prompt_tokens of the result counts what this turn prefilled.  Arguments and errors as for
        `ParallelSynthesis.synthesize`.
        """
        options = SamplingOptions(max_new_tokens, temperature, top_p, top_k, stop)
        if self._cache is None and self.tokens:  # it was donated to a turn that raised
            raise InputError("an earlier turn of this conversation was interrupted: start a new session")
        synth, engine = self._synth, self._synth.engine
        begin, compiled = time.perf_counter(), engine.compile_seconds
        ids = self._turn_ids(text)
        inputs.check_window(synth.model, int(self._offset[0]) + self.tokens, len(ids), max_new_tokens, "this turn")
        output = RowOutput(options, synth.model.stop_ids, synth.model.tokenizer)
        seeds = [(checked_seed(seed), 0)]
        slots = slots_needed(self.tokens, len(ids), max_new_tokens)
        cache = engine.allocate(1, slots, self._row_axes) if self._cache is None else engine.grow(self._cache, slots)
        self._cache = None  # donated from here on
        report = None if on_token is None else lambda _, piece, token: on_token(StreamedToken(piece, 0, None, token))
        before = time.perf_counter() - begin - (engine.compile_seconds - compiled)
        run = generate(
            engine,
            self._reader,
            [ids],
            [output],
            cache,
            self._filled,
            self._offset,
            options,
            seeds,
            report,
            feed_last=True,
        )
        kept = self._filled[0] + len(ids) + len(output.token_ids)
        self._cache, self._filled = run.cache, np.array([kept], np.int32)
        return result_of(output, before + run.first_token_s, float(run.decode_s[0]), len(ids), self._cached_tokens)

    def _turn_ids(self, text: Any) -> tuple[int, ...]:
        model = self._synth.model
        if inputs.is_chat(text) and self._cache is not None:
            raise InputError("messages start a conversation; later turns are a text or token ids")
        if not isinstance(text, str) or self._cache is None:
            wording = prompts.synthesis_messages if self._reads_branches else prompts.question_messages
            return inputs.prompt_ids(model, text, "the question", wording)
        if not text.strip():
            raise InputError("the question is empty")
        tokenizer = inputs.tokenizer_of(model)
        dialogue = [
            {"role": "user", "content": "."},
            {"role": "assistant", "content": _MARK},
            {"role": "user", "content": text},
        ]
        # What the template puts after an answer: the end of that turn, the new question, the start of the next answer.
        parts = tokenizer.chat_text(dialogue).split(_MARK)
        if len(parts) != 2:
            raise InputError("this model's chat template does not show earlier answers: it cannot go on with a conversation")
        return inputs.checked(model, tokenizer.encode(parts[1]), "the question")
