"""What an engine is asked, what it tells while it answers, and what it answers.

Request ── submit ──> Handle: cancel(), done, result()
                        |- Event "token", Event "token", ... Event "end"
                        `- RequestResult, and the branch that it wrote, if it was to be kept
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from psynth_jax.branches import Branches
from psynth_jax.engine.sampling import MOST_ALTERNATIVES
from psynth_jax.errors import InputError, shown
from psynth_jax.synthesis.inputs import Prompt
from psynth_jax.synthesis.sampling import SamplingOptions, Stop, checked_seed, is_number, is_whole

EndReason: TypeAlias = Literal["stop", "length", "cancelled"]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A prompt, and how to go on from it.

    A request that reads no branches is a worker, or any other generation of the base model.

    Args:
      prompt: text, chat or token ids.
      branches: of one question; None reads the prompt alone.
      adapter: scale of LoRA and mapper; None: 1 where branches are read, 0 where none are.
      index: number of the row in its question; with `seed` it makes the random key, as in
        `ParallelSynthesis.work`.
      max_new_tokens, temperature, top_p, top_k, min_p, stop: see `SamplingOptions`.
      logprobs: how many of the most likely tokens are told with each token, up to 20.
      keep: what is written is kept as a branch.
      salt: requests share prompts only with those that have the same; None: with all that have
        none.

    Raises:
      InputError: an option is out of range.
    """

    prompt: Prompt
    branches: Branches | None = None
    adapter: float | None = None
    index: int = 0
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    stop: Stop = ()
    logprobs: int = 0
    keep: bool = False
    salt: str | None = None

    def __post_init__(self) -> None:
        """Check all that can be checked without a model."""
        _ = self.options
        checked_seed(self.seed)
        ranges = (
            ("index", self.index, is_whole(self.index) and 0 <= self.index < 1 << 31, "a whole number, 0 or more"),
            ("logprobs", self.logprobs, is_whole(self.logprobs) and 0 <= self.logprobs <= MOST_ALTERNATIVES, "0 to 20"),
            ("adapter", self.adapter, _is_scale(self.adapter), "a scale, 0 (the base model) or more, or None"),
            ("salt", self.salt, _is_salt(self.salt), "a text, or None"),
            ("keep", self.keep, _is_flag(self.keep), "True or False"),
        )
        for name, value, is_fine, right in ranges:
            if not is_fine:
                raise InputError(f"{name} is {shown(value)}; it must be {right}")

    @property
    def options(self) -> SamplingOptions:
        """How to decode."""
        return SamplingOptions(self.max_new_tokens, self.temperature, self.top_p, self.top_k, self.stop, self.min_p)

    @property
    def scale(self) -> float:
        """Of LoRA and mapper."""
        if self.adapter is None:
            return 0.0 if self.branches is None else 1.0
        return float(self.adapter)


@dataclasses.dataclass(frozen=True)
class RequestResult:
    """What a request gave, and what it took.

    logprobs: of `token_ids`, at temperature 1.  top_logprobs: for each of them (token,
    log-probability) of the most likely tokens, as many as were asked for.  finish_reason: "stop",
    "length" or "cancelled".
    queued_s: seconds before it had room in the pool.  ttft_s: to its first token, None where there
    is none; total_s: to its end.  All from when it was submitted, without the time for which its
    programs were compiled.
    prompt_tokens: of its prompt; cached_prefix_tokens of them had been run before.  cached_tokens:
    read from branches.
    """

    text: str
    token_ids: list[int]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: EndReason
    ttft_s: float | None
    queued_s: float
    total_s: float
    prompt_tokens: int
    cached_tokens: int
    cached_prefix_tokens: int

    @property
    def prefilled_tokens(self) -> int:
        """How many tokens of the prompt were run for this request."""
        return self.prompt_tokens - self.cached_prefix_tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Event:
    """What happened to a request.

    kind: "token", or "end", which comes last and once.
    request_id: of its handle.
    text: what the token adds; empty while a character is incomplete, or might begin a stop text.
    token_id, logprob, top_logprobs: of a "token".
    at_s: seconds since the request was submitted, without compilation.
    result: of an "end" that is none of an error.  branch: what was kept.  error: why it failed.
    """

    kind: Literal["token", "end"]
    request_id: int
    at_s: float
    text: str = ""
    token_id: int | None = None
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = ()
    result: RequestResult | None = None
    branch: Branches | None = None
    error: BaseException | None = None

    @property
    def branch_id(self) -> int | None:
        """Tells the branch that was kept from all others of this process."""
        return None if self.branch is None else self.branch.questions[0][0].serial

    @property
    def finish_reason(self) -> EndReason | None:
        """Why it ended; None for a "token", and for one that failed."""
        return None if self.result is None else self.result.finish_reason


def _is_scale(value: object) -> bool:
    return value is None or (is_number(value) and 0 <= float(value) <= 1e3)  # type: ignore[arg-type]


def _is_salt(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def checked_request(request: Any) -> Request:
    """Return a request.  Raises `InputError` for anything else, saying how to make one."""
    if not isinstance(request, Request):
        raise InputError(f"a request is a ps.Request, as in ps.Request('What is a cache?'), not {shown(request)}")
    if request.branches is not None and not isinstance(request.branches, Branches):
        raise InputError(f"branches must be what `work` or `encode` returned, not {shown(request.branches)}")
    if request.branches is not None and request.branches.batched:
        raise InputError("a request reads the branches of one question: pick one of the batch, as in branches[0]")
    return request
