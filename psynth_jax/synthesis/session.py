"""A conversation over branches: every turn reads the same immutable branches, and the dialogue so far.

    turn 1   [ question | answer ]
    turn 2   [ question | answer | end of turn, next question | answer ]       only the last two are run

A turn's prompt is the whole dialogue: the pool knows what it has of it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from psynth_jax import prompts
from psynth_jax.branches import Branches
from psynth_jax.errors import InputError
from psynth_jax.synthesis import arguments, inputs
from psynth_jax.synthesis.inputs import Prompt
from psynth_jax.synthesis.outputs import OnToken, RowOutput
from psynth_jax.synthesis.result import SynthesisResult, result_of
from psynth_jax.synthesis.runner import asked_of
from psynth_jax.synthesis.sampling import SamplingOptions, Stop, checked_seed, sampling_of
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
        given: Any = branches
        if isinstance(given, list | tuple):
            given = Branches.batch(given)
        if isinstance(given, Branches) and given.batched:
            raise InputError("a session reads the branches of one question: pick one of the batch, as in branches[0]")
        self._synth = synth
        self._branches = branches
        (self._asked,) = asked_of(synth.runner, synth.checked_groups(branches), 1)
        self._count = 0 if branches is None else len(branches)
        self._dialogue: tuple[int, ...] = ()
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
        synth, runner = self._synth, self._synth.runner
        begin = runner.now()
        ids = self._turn_ids(text)
        position = self._asked.position + self.tokens
        inputs.check_window(synth.model, position, len(ids), options.max_new_tokens, "this turn")
        report = None if on_token is None else arguments.reporter(on_token, 0)
        output = RowOutput(options, synth.model.stop_ids, synth.model.tokenizer, runner, append_last=True, report=report)
        # Branches of a file or of another pool are copied again where a failed step has lost their copies.
        (self._asked,) = asked_of(runner, synth.checked_groups(self._branches), 1)
        asked = self._asked
        sequence = runner.sequence(
            (*self._dialogue, *ids),
            options.max_new_tokens,
            output,
            asked.block,
            draws=output.draws,
            sampling=sampling_of(options, (seed, 0)),
            branches=asked.branches,
            kept=asked.kept,
            position=asked.position,
            scale=1.0,
            least_shared=1,
        )
        runner.run([sequence], output.tell)
        self._dialogue = (*self._dialogue, *ids, *output.token_ids)
        return result_of(output, begin, len(ids), asked.cached_tokens, sequence.shared_tokens)

    def _turn_ids(self, text: Any) -> tuple[int, ...]:
        model = self._synth.model
        if inputs.is_chat(text) and self.tokens:
            raise InputError("messages start a conversation; later turns are a text or token ids")
        if not isinstance(text, str) or not self.tokens:
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
