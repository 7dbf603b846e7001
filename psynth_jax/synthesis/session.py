"""A conversation over branches: every turn reads the same immutable branches, and the dialogue's own cache so far.

turn 1   [ question | answer ]
turn 2   [ question | answer | end of turn, next question | answer ]       only the last two are fed
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from psynth_jax import prompts
from psynth_jax.branches import Branches
from psynth_jax.engine.sequences import GREEDY, Listener, PositionedRun, SequenceSampling, TokenSequence
from psynth_jax.errors import InputError
from psynth_jax.kv.pool import Lease
from psynth_jax.kv.transfer import compacted
from psynth_jax.synthesis import arguments, inputs
from psynth_jax.synthesis.inputs import Prompt
from psynth_jax.synthesis.outputs import Cached, OnToken, RowOutput
from psynth_jax.synthesis.result import SynthesisResult, result_of
from psynth_jax.synthesis.runner import asked_of, positioned
from psynth_jax.synthesis.sampling import SamplingOptions, Stop, checked_seed, sampling_of
from psynth_jax.unicode_text import checked_text

if TYPE_CHECKING:
    from psynth_jax.synthesis.pipeline import ParallelSynthesis

MOST_PIECES = 8  # of the pool that a dialogue may be read in: every turn is one, and rows have room for few
_MARK = "\u2042answer\u2042"  # stands for an earlier answer when a template is asked what comes after it


class Dialogue(NamedTuple):
    """All turns so far.  leases: what is cached of the ids, and can be made of them again."""

    ids: tuple[int, ...] = ()
    leases: tuple[Lease, ...] = ()


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
        (self._asked,) = asked_of(synth.runner, synth._checked_groups(branches), 1)
        self._count = 0 if branches is None else len(branches)
        self._dialogue = Dialogue()
        self._turn = threading.Lock()
        self._answering: int | None = None  # the thread whose turn it is

    def __repr__(self) -> str:
        """Show what it reads, and how long it is."""
        return f"Session({self._count or 'no'} branches, {self.tokens} tokens of dialogue, {self._synth.model!r})"

    @property
    def tokens(self) -> int:
        """Tokens of the dialogue so far, questions and answers."""
        return len(self._dialogue.ids)

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
        (self._asked,) = asked_of(runner, synth._checked_groups(self._branches), 1)
        sequence = self._sequence(
            ids, options.max_new_tokens, output, self._dialogue_runs(), sampling_of(options, (seed, 0))
        )
        runner.run([sequence])
        turn = (*ids, *output.token_ids)
        lease = sequence.lease.part(0, len(turn))
        before = self._dialogue
        self._dialogue = Dialogue((*before.ids, *turn), (*before.leases, lease))
        return result_of(output, begin, len(ids), self._asked.cached_tokens)

    def _sequence(
        self,
        ids: Sequence[int],
        new_tokens: int,
        listener: Listener,
        dialogue: Sequence[PositionedRun],
        sampling: SequenceSampling = GREEDY,
    ) -> TokenSequence:
        """Return the sequence of a turn, behind the dialogue so far."""
        asked = self._asked
        read = sum(each.run.length for each in dialogue)
        return self._synth.runner.sequence(
            ids,
            new_tokens,
            listener,
            asked.block,
            sampling=sampling,
            branches=asked.branches,
            shared=dialogue,
            kept=(*asked.kept, *self._dialogue.leases) if dialogue else asked.kept,
            position=asked.position + read,
            scale=1.0,
        )

    def _dialogue_runs(self) -> list[PositionedRun]:
        """Return the runs of all turns so far.

        Where a failed step has lost them, the dialogue is run again; where they are many, they are copied into one.
        """
        synth, (ids, leases) = self._synth, self._dialogue
        if any(lease.lost for lease in leases):
            again = self._sequence(ids, 0, Cached(synth.runner, "the dialogue"), ())
            synth.runner.run([again])
            leases = (again.lease.part(0, len(ids)),)
        if sum(len(lease.runs) for lease in leases) > MOST_PIECES:
            leases = (compacted(leases, self._asked.block),)
        self._dialogue = Dialogue(ids, leases)
        runs, position = [], self._asked.position
        for lease in leases:
            runs += positioned(lease, position)
            position += lease.slots
        return runs

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
