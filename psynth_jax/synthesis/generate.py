"""The decoding loop: prefill, then one token per row and step, each row stopping on its own.

    sampled   t0      t1      t2      end
    fed            t0      t1      t2          a token's key and value exist once it is fed

Rows that have stopped idle along, writing behind their own last token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.branch import FinishReason
from psynth_jax.cache import KVCache
from psynth_jax.errors import InputError
from psynth_jax.synthesis.engine import Engine, not_finite
from psynth_jax.synthesis.sampling import NOT_FINITE, Sampled, SamplingOptions, row_sampling
from psynth_jax.synthesis.step import Reader
from psynth_jax.tokenizer import TextStream, Tokenizer


class StreamedToken(str):
    """A piece of text as it is produced, with where it comes from.

    The pieces of a row, put together, are its text: that of the answer, or what a worker wrote (its branch ends a token
    earlier where a stop text begins inside of a token).  A piece is empty while a character is incomplete, or might begin a
    stop text.  token_id is None for text that was held back until the row ended.  worker is None for the synthesizer.
    """

    __slots__ = ("question", "token_id", "worker")

    question: int
    worker: int | None
    token_id: int | None

    def __new__(cls, piece: str, question: int, worker: int | None, token_id: int | None) -> StreamedToken:
        """Make a str that knows its row."""
        self = super().__new__(cls, piece)
        self.question, self.worker, self.token_id = question, worker, token_id
        return self


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
        name: str = "the answer",
    ):
        """Start with nothing.  name: in messages.  Raises `InputError` for stop texts without a tokenizer to find them."""
        self.name = name
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

    def push(self, token: int) -> str:
        """Take the next sampled token; return the text that is now certain."""
        if token in self._stop_ids:
            return self._finish("stop")
        self.token_ids.append(token)
        if self._stream is not None:
            self.text += self._stream.push(token)
            begins = [at for at in (self.text.find(stop) for stop in self._stop_texts) if at >= 0]
            if begins:
                self._cut(min(begins))
                return self._finish("stop")
        if len(self.token_ids) == self._limit:
            return self._finish("length")
        return self._emit(max(len(self.text) - self._held, self._sent))

    def feeds(self, feed_last: bool) -> bool:
        """Whether the last token is to be fed: the row goes on, or was cut off and shall be cached to its end."""
        return self.finish_reason is None or (feed_last and self.finish_reason == "length")

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


@dataclasses.dataclass
class OwnCache:
    """The own cache while a call goes on: each step takes the last one's buffers, so that only the newest can be read."""

    value: KVCache


@dataclasses.dataclass(frozen=True)
class Generated:
    """cache: the own cache, every kept token fed if `feed_last`.

    first_token_s: seconds to the first token of all rows.  decode_s `[B]`: from there to each row's last token.
    logprob, margin: of each row `[its sampled tokens]` float32, the end token included; see `Sampled`.
    """

    cache: KVCache
    first_token_s: float
    decode_s: HostArray
    logprob: list[HostArray]
    margin: list[HostArray]


def generate(
    engine: Engine,
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[RowOutput | None],
    cache: KVCache,
    filled: HostArray,
    offset: HostArray,
    options: SamplingOptions,
    seeds: Sequence[tuple[int, int]],
    on_token: Callable[[int, str, int | None], None] | None = None,
    *,
    feed_last: bool,
    held: OwnCache | None = None,
) -> Generated:
    """Decode every row until it stops, filling `outputs`.

    Args:
      prompts, outputs, seeds: one per row; see `RowOutput` and `row_sampling`.  A row without an output is fed nothing.
      cache, filled, offset: as for `Engine.prefill`.
      on_token: called with (row, text piece, token id) after each token of a row that is going on.  What it raises ends
        the call.
      feed_last: also feed the last token of a row that is cut off, so that the cache holds all its tokens.
      held: takes the newest cache after every step; it is what is left when the call is broken off.

    Raises:
      NotFiniteError: logits of a row that is going on are NaN or infinite; the row's name is told.
    """
    begin = engine.now()
    sampling = engine.place(row_sampling(options, seeds))
    cache, hidden, new = engine.prefill(reader, prompts, cache, filled, offset, sampling, greedy=options.greedy)
    steps: list[Sampled] = []
    filled = filled + np.array([len(prompt) for prompt in prompts], np.int32)
    first_token_s, decode_s, index = 0.0, np.zeros(len(outputs)), 0
    counts = [0] * len(outputs)
    fed = np.array([output is not None for output in outputs])
    while True:
        if held is not None:
            held.value = cache
        assert new is not None
        steps.append(new)
        sampled = np.asarray(new.token)
        if index == 0:
            first_token_s, begin = engine.now() - begin, engine.now()
        feeding = np.zeros_like(filled)
        for row, output in enumerate(outputs):
            # Rows that run idle may read anything; what was fed a token, if only to be cached, has to be sound.
            if output is not None and fed[row] and sampled[row] == NOT_FINITE:
                raise not_finite(engine, f"logits of {output.name}")
            if output is not None and output.finish_reason is None:
                piece = output.push(int(sampled[row]))
                counts[row] += 1
                feeding[row] = output.feeds(feed_last)
                decode_s[row] = engine.now() - begin
                if on_token is not None:
                    on_token(row, piece, int(sampled[row]))
        if not feeding.any():
            return _generated(cache, first_token_s, decode_s, steps, counts)
        index += 1
        cache, hidden, new = engine.decode(
            reader, new.token, cache, filled, feeding, offset, hidden, sampling, index, greedy=options.greedy
        )
        filled, fed = filled + feeding, feeding > 0


def _generated(
    cache: KVCache, first_token_s: float, decode_s: HostArray, steps: Sequence[Sampled], counts: Sequence[int]
) -> Generated:
    """Bring to the host, once, what was measured beside the tokens."""
    fetched = jax.device_get([(step.logprob, step.margin) for step in steps])  # all copies begin at once
    logprobs, margins = np.stack(fetched, axis=-1)
    logprob = [row[:count] for row, count in zip(logprobs, counts, strict=True)]
    margin = [row[:count] for row, count in zip(margins, counts, strict=True)]
    return Generated(cache, first_token_s, decode_s, logprob, margin)
