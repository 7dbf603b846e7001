"""What an answer is, and what it took."""

from __future__ import annotations

import dataclasses

from psynth_jax.branches import FinishReason
from psynth_jax.errors import shown
from psynth_jax.synthesis.generate import RowOutput


@dataclasses.dataclass(frozen=True, repr=False)
class SynthesisResult:
    """An answer and what it took.

    ttft_s: seconds from branches ready to the first token on the host, tokenisation included, compilation not.
    prompt_tokens: prefilled for this answer.  cached_tokens: read from branches.  finish_reason: "stop" or "length".
    """

    text: str
    token_ids: list[int]
    ttft_s: float
    prompt_tokens: int
    cached_tokens: int
    decode_tokens_per_s: float
    finish_reason: FinishReason

    def __repr__(self) -> str:
        """Show how the text begins, and the counts."""
        tokens = f"{len(self.token_ids)} tokens, {self.prompt_tokens} prefilled, {self.cached_tokens} read"
        return f"SynthesisResult({shown(self.text)}, {tokens}, ttft {self.ttft_s:.3f} s, {self.finish_reason})"


def result_of(output: RowOutput, ttft_s: float, decode_s: float, prompt_tokens: int, cached_tokens: int) -> SynthesisResult:
    """Describe a finished row."""
    later = len(output.token_ids) - 1
    rate = later / decode_s if later > 0 and decode_s > 0 else 0.0
    reason = output.finish_reason or "length"
    return SynthesisResult(output.text, output.token_ids, ttft_s, prompt_tokens, cached_tokens, rate, reason)
