"""What an answer is, and what it took."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, TypeAlias

import numpy as np

from psynth_jax.branch import FinishReason
from psynth_jax.errors import shown
from psynth_jax.synthesis.outputs import RowOutput

Route: TypeAlias = Literal["branches", "text"]


@dataclasses.dataclass(frozen=True)
class Confidence:
    """How sure a model was of what it wrote, from 0 to 1; over all sampled tokens, the end token included.

    likelihood: the geometric mean of their probabilities, exp(mean log-probability).
    margin: the mean distance in probability between the most likely token and the second.
    """

    likelihood: float
    margin: float


@dataclasses.dataclass(frozen=True, repr=False)
class SynthesisResult:
    """An answer and what it took.

    ttft_s: seconds from branches ready to the first token on the host, tokenisation included, compilation not.
    prompt_tokens: of the prompt; of a turn, without the turns before it.  cached_tokens: read from
    branches.
    cached_prefix_tokens: at the begin of all that was to be run, that earlier calls had run.
    finish_reason: "stop" or "length".
    total_s: seconds from branches ready to the last token.  logprobs: of `token_ids`, at temperature 1.
    route: "text" for an answer that a gate had written from the texts, see `Gate`; confidence is that of the branches'
    answer then.
    """

    text: str
    token_ids: list[int]
    ttft_s: float
    prompt_tokens: int
    cached_tokens: int
    decode_tokens_per_s: float
    finish_reason: FinishReason
    total_s: float = 0.0
    logprobs: tuple[float, ...] = ()
    confidence: Confidence | None = None
    route: Route | None = None
    cached_prefix_tokens: int = 0

    def __repr__(self) -> str:
        """Show how the text begins, and the counts."""
        tokens = f"{len(self.token_ids)} tokens, {self.prompt_tokens} of the prompt, {self.cached_tokens} read"
        return f"SynthesisResult({shown(self.text)}, {tokens}, ttft {self.ttft_s:.3f} s, {self.finish_reason})"


def result_of(
    output: RowOutput, begin: float, prompt_tokens: int, cached_tokens: int, cached_prefix_tokens: int
) -> SynthesisResult:
    """Describe a finished row.  begin: the reading of the clock when branches were ready."""
    assert output.first_s is not None
    decode_s = output.last_s - output.first_s
    later = len(output.token_ids) - 1
    rate = later / decode_s if later > 0 and decode_s > 0 else 0.0
    return SynthesisResult(
        output.text,
        output.token_ids,
        output.first_s - begin,
        prompt_tokens,
        cached_tokens,
        rate,
        output.finish_reason or "length",
        total_s=output.last_s - begin,
        logprobs=tuple(output.logprobs[: len(output.token_ids)]),
        confidence=Confidence(math.exp(np.mean(output.logprobs)), float(np.mean(output.margins))),
        cached_prefix_tokens=cached_prefix_tokens,
    )
