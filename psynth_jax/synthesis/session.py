"""A conversation over branches: every turn reads the same immutable branches, and the dialogue's own cache so far.

turn 1   [ question | answer ]
turn 2   [ question | answer | end of turn, next question | answer ]       only the last two are fed
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from psynth_jax import prompts
from psynth_jax.branches import Branches
from psynth_jax.cache import KVCache
from psynth_jax.errors import InputError
from psynth_jax.synthesis import arguments, inputs
from psynth_jax.synthesis.engine import slots_needed
from psynth_jax.synthesis.generate import OnToken, OwnCache, RowOutput, generate
from psynth_jax.synthesis.inputs import Prompt
from psynth_jax.synthesis.result import SynthesisResult, results_of
from psynth_jax.synthesis.sampling import SamplingOptions, Stop, checked_seed
from psynth_jax.unicode_text import checked_text

if TYPE_CHECKING:
    from psynth_jax.synthesis.pipeline import ParallelSynthesis

_MARK = "\u2042answer\u2042"  # stands for an earlier answer when a template is asked what comes after it


class Session:
    """Several turns over the branches of one question (None: over none).

    A turn that raises, whatever it is and wherever it comes from, leaves the conversation as it was before that turn.
    Threads may share a session: turns are answered one after the other.
    """

    def __init__(self, synth: ParallelSynthesis, branches: Branches | None):
        """Start with an empty dialogue.  Raises `InputError` for a batch of questions: a session has one."""
        groups = synth._checked_groups(branches)
        if groups is not None and not (isinstance(branches, Branches) and not branches.batched):
            raise InputError("a session reads the branches of one question: pick one of the batch, as in branches[0]")
        self._synth = synth
        self._count = len(branches) if isinstance(branches, Branches) else 0
        self._reader, self._offset, self._row_axes = synth._reader(groups, 1)
        self._cached_tokens = sum(branch.span for branch in groups[0]) if groups is not None else 0
        self._dialogue: tuple[int, ...] = ()  # all that was fed: what the cache holds, and what it can be made of again
        self._cache: KVCache | None = None
        self._turn = threading.Lock()
        self._answering: int | None = None  # the thread whose turn it is

    def __repr__(self) -> str:
        """Show what it reads, and how long it is."""
        return f"Session({self._count or 'no'} branches, {self.tokens} tokens of dialogue, {self._synth.model!r})"

    @property
    def tokens(self) -> int:
        """Tokens of the dialogue so far, questions and answers."""
        return len(self._dialogue)

    def reply(
        self,
        text: Prompt,
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
        `ParallelSynthesis.synthesize`.  After any of them the same turn may be asked again, as if it had not been.
        """
        options = SamplingOptions(max_new_tokens, temperature, top_p, top_k, stop)
        inputs.check_callback(on_token)
        if self._answering == threading.get_ident():
            raise InputError("this conversation is answering a turn: on_token cannot ask it the next one")
        with self._turn:
            self._answering = threading.get_ident()
            try:
                return self._reply(text, options, checked_seed(seed), on_token)
            finally:
                self._answering = None

    def _reply(self, text: Any, options: SamplingOptions, seed: int, on_token: OnToken | None) -> SynthesisResult:
        synth, engine = self._synth, self._synth.engine
        begin = engine.now()
        ids = self._turn_ids(text)
        offset = int(self._offset[0])
        inputs.check_window(synth.model, offset + self.tokens, len(ids), options.max_new_tokens, "this turn")
        output = RowOutput(options, synth.model.stop_ids, synth.model.tokenizer)
        report = None if on_token is None else arguments.reporter(on_token)
        held = OwnCache(self._cache_for(slots_needed(self.tokens, len(ids), options.max_new_tokens)))
        before = engine.now() - begin
        # Every step takes the buffers of the cache before it.  The slots of earlier turns are never written again, so that
        # the newest cache serves as the oldest did.
        try:
            run = generate(
                engine,
                self._reader,
                [ids],
                [output],
                held.value,
                np.array([self.tokens], np.int32),
                self._offset,
                options,
                [(seed, 0)],
                report,
                feed_last=True,
                held=held,
            )
            (result,) = results_of(run, [output], before, [len(ids)], [self._cached_tokens])
        except BaseException:
            self._cache = held.value
            raise
        self._cache, self._dialogue = run.cache, (*self._dialogue, *ids, *output.token_ids)
        return result

    def _cache_for(self, slots: int) -> KVCache:
        """Return a cache with room for `slots` that holds the dialogue.

        A turn that was broken off between two steps has left one whose buffers are gone: the dialogue is then fed again.
        """
        engine = self._synth.engine
        if not self._dialogue:
            return engine.allocate(1, slots, self._row_axes)
        if self._cache is not None and not self._cache.heads.k.is_deleted():
            return engine.grow(self._cache, slots)
        cache = engine.allocate(1, max(slots, slots_needed(0, self.tokens, 0)), self._row_axes)
        nothing = np.zeros(1, np.int32)
        cache, _, _ = engine.prefill(self._reader, [self._dialogue], cache, nothing, self._offset, None)
        return cache

    def _turn_ids(self, text: Any) -> tuple[int, ...]:
        model = self._synth.model
        if inputs.is_chat(text) and self._dialogue:
            raise InputError("messages start a conversation; later turns are a text or token ids")
        if not isinstance(text, str) or not self._dialogue:
            wording = prompts.synthesis_messages if self._count else prompts.question_messages
            return inputs.prompt_ids(model, text, "the question", wording)
        if not checked_text(text, "the question").strip():
            raise InputError("the question is empty")
        mark = _MARK
        while mark in text:
            mark += _MARK
        dialogue = [
            {"role": "user", "content": "."},
            {"role": "assistant", "content": mark},
            {"role": "user", "content": text},
        ]
        tokenizer = inputs.tokenizer_of(model)
        try:
            rendered = tokenizer.chat_text(dialogue)
        except InputError as error:
            raise InputError(f"the question, for {model.name}: {error}") from None
        # What the template puts after an answer: the end of that turn, the new question, the start of the next answer.
        parts = rendered.split(mark)
        if len(parts) != 2:
            raise InputError("this model's chat template does not show earlier answers: it cannot go on with a conversation")
        return inputs.checked(model, tokenizer.encode(parts[1]), "the question")
