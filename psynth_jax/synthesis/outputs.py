"""What a row produces, token by token: its text, when it ends, and how long it took.

sampled   t0      t1      t2      end
run            t0      t1      t2          a token has keys and values once it was run
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

from psynth_jax.branch import FinishReason
from psynth_jax.engine.sampling import NOT_FINITE
from psynth_jax.engine.sequences import Next, Token
from psynth_jax.errors import InputError
from psynth_jax.synthesis.runner import Runner, not_finite
from psynth_jax.synthesis.sampling import SamplingOptions
from psynth_jax.tokenizer import TextStream, Tokenizer


class Piece(NamedTuple):
    """What a token adds to a row.

    text: that is certain now; empty while a character is incomplete, or might begin a stop text.
    logprob: of the token.  alternatives: the most likely tokens in its place, with their
    log-probabilities.
    finish_reason: why the row ended with it, None where it goes on.
    """

    text: str
    token_id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None


Report = Callable[[Piece], None]


class StreamedToken(str):
    """A piece of text as it is produced, with where it comes from.

    The pieces of a row, put together, are its text: that of the answer, or what a worker wrote (its branch ends a token
    earlier where a stop text begins inside of a token).  A piece is empty while a character is incomplete, or might begin a
    stop text.  worker is None for the synthesizer.  finish_reason is None before the last piece of
    a row.
    """

    __slots__ = ("finish_reason", "logprob", "question", "token_id", "worker")

    question: int
    worker: int | None
    token_id: int
    logprob: float
    finish_reason: FinishReason | None

    def __new__(cls, piece: Piece, question: int, worker: int | None) -> StreamedToken:
        """Make a str that knows its row."""
        self = super().__new__(cls, piece.text)
        self.question, self.worker, self.token_id = question, worker, piece.token_id
        self.logprob, self.finish_reason = piece.logprob, piece.finish_reason
        return self

    def of_question(self, question: int) -> StreamedToken:
        """Return the same piece under another number of its question."""
        piece = Piece(str(self), self.token_id, self.logprob, (), self.finish_reason)
        return StreamedToken(piece, question, self.worker)


OnToken = Callable[[StreamedToken], None]


class RowOutput:
    """What a row has produced: token_ids and text, without end tokens and stop texts; why it ended (None: it has not).

    Where a stop text begins inside of a token, that token is not among token_ids, but its letters before are in the text.
    """

    def __init__(
        self,
        options: SamplingOptions,
        stop_ids: frozenset[int],
        tokenizer: Tokenizer | None,
        runner: Runner,
        name: str = "the answer",
        *,
        append_last: bool = False,
        report: Report | None = None,
        at_once: bool = False,
    ):
        """Start with nothing.

        Args:
          runner: says in messages what it computes with.
          name: in messages.
          append_last: the last token of a row that is cut off gets keys and values, too.
          report: told each piece, by `tell`.  at_once: by the thread that drives the engine; it
            must not raise.

        Raises `InputError` for stop texts without a tokenizer to find them.
        """
        self.name = name
        self.logprobs: list[float] = []
        self.margins: list[float] = []
        self.first_s: float | None = None
        self.last_s = 0.0
        self._runner, self._append_last, self._report = runner, append_last, report
        self._at_once = at_once
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self._limit = options.max_new_tokens
        self._stop_ids = stop_ids | {int(stop) for stop in options.stops if not isinstance(stop, str)}
        self._stop_texts = [stop for stop in options.stops if isinstance(stop, str)]
        if self._stop_texts and tokenizer is None:
            raise InputError(f"the model has no tokenizer to find the stop text {self._stop_texts[0]!r}: give token ids")
        self._held = max((len(stop) for stop in self._stop_texts), default=1) - 1
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer) if tokenizer is not None else None
        self._sent = 0
        self._untold: collections.deque[Piece] = collections.deque()

    def __call__(self, token: Token) -> Next:
        """Take the next sampled token; see `engine.sequences.Listener`.

        Raises `NotFiniteError` for logits that are NaN or infinite.
        """
        if token.id == NOT_FINITE:
            raise not_finite(self._runner, f"logits of {self.name}")
        if self.finish_reason is not None:  # this step only gave the last token its keys and values
            return Next.END
        self.last_s = token.at
        if self.first_s is None:
            self.first_s = self.last_s
        piece = self.push(token.id)
        self.logprobs.append(token.logprob)
        self.margins.append(token.margin)
        if self._report is not None:
            self._untold.append(Piece(piece, token.id, token.logprob, token.alternatives, self.finish_reason))
            if self._at_once:
                self.tell()
        return Next.GO_ON if self._goes_on() else Next.END

    @property
    def draws(self) -> int:
        """How many tokens are sampled at most, one behind the last that gets keys and values counted."""
        return self._limit + self._append_last

    def tell(self) -> None:
        """Report the pieces that are new, in the thread that calls."""
        while self._untold:
            assert self._report is not None
            self._report(self._untold.popleft())

    def close(self) -> None:
        """Report nothing more, and hold nothing that would be reported to."""
        self._report = None

    def _goes_on(self) -> bool:
        """Whether another step has something to do for this row."""
        if self.finish_reason is None:
            return True
        return self._append_last and self.finish_reason == "length"

    def push(self, token: int) -> str:
        """Take the next sampled token; return the text that is now certain."""
        if token in self._stop_ids:
            return self._finish("stop")
        self.token_ids.append(token)
        if self._stream is not None:
            self.text += self._stream.push(token)
            places = [self.text.find(stop) for stop in self._stop_texts]
            begins = [at for at in places if at >= 0]
            if begins:
                self._cut(min(begins))
                return self._finish("stop")
        if len(self.token_ids) == self._limit:
            return self._finish("length")
        return self._emit(max(len(self.text) - self._held, self._sent))

    def _cut(self, length: int) -> None:
        """Drop text from `length` on, and the tokens that reach into it."""
        assert self._tokenizer is not None
        self.text, self._stream = self.text[:length], None
        while self.token_ids and len(self._tokenizer.decode(self.token_ids)) > length:
            self.token_ids.pop()

    def _finish(self, reason: FinishReason) -> str:
        self.finish_reason = reason
        if self._stream is not None:
            self.text += self._stream.finish()
        return self._emit(len(self.text))

    def _emit(self, end: int) -> str:
        piece, self._sent = self.text[self._sent : end], end
        return piece


def tell_all(outputs: Sequence[RowOutput]) -> None:
    """Report what is new of several rows."""
    for output in outputs:
        output.tell()


class Cached:
    """A row of which nothing is wanted but its keys and values: it ends with its prompt.  name: in messages."""

    def __init__(self, runner: Runner, name: str):
        """Remember what to say where they are not finite."""
        self._runner, self._name = runner, name

    def __call__(self, token: Token) -> Next:
        """Raise `NotFiniteError` for logits that are NaN or infinite: what was cached is, too."""
        if token.id == NOT_FINITE:
            raise not_finite(self._runner, f"keys and values of {self._name}")
        return Next.END
