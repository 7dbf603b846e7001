"""A quality gate: an answer from caches is taken when the model was sure of it; the text route answers else.

    branches -> answer, confidence -> above the threshold: that answer
                                   -> else: the workers' texts -> answer

`psynth eval --calibrate` finds the threshold.  An answer is judged when it is complete, so that no token of it
can be shown before; a threshold of 0 takes every answer from caches, and streams it, and one of 1 asks the texts alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeAlias, get_args

from psynth_jax.branches import Branches
from psynth_jax.errors import InputError, shown
from psynth_jax.files import read_text
from psynth_jax.synthesis.generate import OnToken, StreamedToken
from psynth_jax.synthesis.inputs import as_questions
from psynth_jax.synthesis.result import Confidence, Route, SynthesisResult
from psynth_jax.synthesis.sampling import SamplingOptions

Measure: TypeAlias = Literal["likelihood", "margin"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


class Synthesizer(Protocol):
    """What a gate asks: `ParallelSynthesis`, without a gate of its own."""

    @property
    def synthesize(self) -> Callable[..., Any]:
        """Answers from caches."""

    @property
    def synthesize_text(self) -> Callable[..., Any]:
        """Answers from texts."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """threshold: from 0 to 1, which the confidence must pass.  measure: which field of `Confidence` that is."""

    threshold: float
    measure: Measure = "likelihood"

    def __post_init__(self) -> None:
        """Raise `InputError` naming the value that is out of range."""
        threshold: Any = self.threshold
        is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not is_number or not 0 <= threshold <= 1:
            raise InputError(f"a gate's threshold is {shown(threshold)}; it must be a number from 0 to 1")
        if self.measure not in MEASURES:
            raise InputError(f"a gate's measure is {shown(self.measure)}; it must be {' or '.join(MEASURES)}")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a gate that `psynth eval --calibrate` wrote.  Raises `InputError` for a file that holds none."""
        try:
            value = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} holds no gate: {error}") from None
        if not isinstance(value, dict) or not {"threshold", "measure"} <= set(value):
            raise InputError(f"{path} holds no gate: it needs a threshold and a measure")
        return cls(value["threshold"], value["measure"])

    @property
    def reads_branches(self) -> bool:
        """Whether any answer from caches could be taken."""
        return self.threshold < 1

    @property
    def judges(self) -> bool:
        """Whether answers are judged at all; otherwise all of them are taken, or none."""
        return 0 < self.threshold < 1

    def accepts(self, confidence: Confidence) -> bool:
        """Whether an answer of that confidence is taken."""
        value: float = getattr(confidence, self.measure)
        return self.threshold == 0 or (self.reads_branches and value > self.threshold)


def gated_answer(
    gate: Gate,
    synth: Synthesizer,
    question: Any,
    branches: Branches | Sequence[Branches],
    options: SamplingOptions,
    seed: int,
    on_token: OnToken | None,
    recompute: int,
) -> SynthesisResult | list[SynthesisResult]:
    """Answer from branches where the gate takes the answer, and else from their texts.

    synth: answers without a gate.  question, branches, seed, on_token, recompute: as for `ParallelSynthesis.synthesize`.
    """
    given = dataclasses.asdict(options) | {"seed": seed}
    questions, batched = as_questions(question)
    texts = _texts_of(branches)
    if not gate.judges:
        if gate.reads_branches:
            found = synth.synthesize(questions, branches, on_token=on_token, recompute=recompute, **given)
            route: Route = "branches"
        else:
            found = synth.synthesize_text(questions, texts, on_token=on_token, **given)
            route = "text"
        results = [dataclasses.replace(result, route=route) for result in found]
        return results if batched else results[0]
    pieces: list[StreamedToken] = []
    results = synth.synthesize(questions, branches, on_token=pieces.append, recompute=recompute, **given)
    doubted = []
    for row, result in enumerate(results):
        assert result.confidence is not None
        if gate.accepts(result.confidence):
            results[row] = _taken(result)
        else:
            doubted.append(row)
    if on_token is not None:
        for piece in pieces:
            if piece.question not in doubted:
                on_token(piece)
    if doubted:
        asked, read = [questions[row] for row in doubted], [texts[row] for row in doubted]
        report = None if on_token is None else _renumbered(on_token, doubted)
        again = synth.synthesize_text(asked, read, on_token=report, **given)
        for row, result in zip(doubted, again, strict=True):
            results[row] = _replaced(results[row], result)
    return results if batched else results[0]


def _texts_of(branches: Branches | Sequence[Branches]) -> list[list[str]]:
    joined = branches if isinstance(branches, Branches) else Branches.batch(branches)
    return [[branch.text for branch in group] for group in joined.questions]


def _renumbered(on_token: OnToken, rows: Sequence[int]) -> OnToken:
    """Return what tells of a part of the questions by the numbers that they have among all."""
    return lambda piece: on_token(StreamedToken(str(piece), rows[piece.question], piece.worker, piece.token_id))


def _taken(result: SynthesisResult) -> SynthesisResult:
    """Return an answer that was taken: its first token is shown when all of it has been judged."""
    return dataclasses.replace(result, ttft_s=result.total_s, route="branches")


def _replaced(from_branches: SynthesisResult, from_text: SynthesisResult) -> SynthesisResult:
    """Return the texts' answer that stands in for another, with the time and the tokens that both took."""
    return dataclasses.replace(
        from_text,
        ttft_s=from_branches.total_s + from_text.ttft_s,
        total_s=from_branches.total_s + from_text.total_s,
        prompt_tokens=from_branches.prompt_tokens + from_text.prompt_tokens,
        cached_tokens=from_branches.cached_tokens,
        confidence=from_branches.confidence,
        route="text",
    )
