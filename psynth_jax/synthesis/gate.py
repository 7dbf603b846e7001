"""A quality gate: an answer from caches is taken when the model was sure of it; the texts answer else.

    branches -> answer, confidence -> above the threshold: that answer
                                   -> else: the workers' texts -> answer

`psynth eval --calibrate` finds the threshold.  An answer is judged when all answers of the call are
complete, so that no token of it can be shown before.  A threshold of 0 takes every answer from
caches, and streams it; one of 1 asks the texts alone.
"""

from __future__ import annotations

import dataclasses
import json
import numbers
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeAlias, get_args

from psynth_jax.branches import Branches
from psynth_jax.errors import ContextLengthError, InputError, ModelMismatchError, shown
from psynth_jax.files import read_text
from psynth_jax.identity import Identity, short
from psynth_jax.prompts import read_as
from psynth_jax.synthesis.outputs import OnToken, StreamedToken
from psynth_jax.synthesis.result import Confidence, Route, SynthesisResult

Measure: TypeAlias = Literal["likelihood", "margin"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

FromBranches: TypeAlias = Callable[[OnToken | None], list[SynthesisResult]]
FromTexts: TypeAlias = Callable[[Sequence[int], OnToken | None], list[SynthesisResult]]


@dataclasses.dataclass(frozen=True)
class Gate:
    """When an answer from caches is taken.

    threshold: from 0 to 1, which the confidence must pass.  measure: which field of `Confidence`
    that is.  model, adapter: fingerprint and digest of those that it was chosen for; None: any.
    """

    threshold: float
    measure: Measure = "likelihood"
    model: str | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        """Raise `InputError` naming the value that is out of range."""
        given: Any = self.threshold
        is_number = isinstance(given, numbers.Real) and not isinstance(given, bool)
        if not is_number or not 0 <= given <= 1:
            raise InputError(f"a gate's threshold is {shown(given)}; it must be a number from 0 to 1")
        object.__setattr__(self, "threshold", float(given))
        if self.measure not in MEASURES:
            right = " or ".join(MEASURES)
            raise InputError(f"a gate's measure is {shown(self.measure)}; it must be {right}")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a gate that `psynth eval --calibrate` wrote.

        Raises `InputError` for a file that holds none.
        """
        try:
            value = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} holds no gate: {error}") from None
        if not isinstance(value, dict) or not {"threshold", "measure"} <= set(value):
            raise InputError(f"{path} holds no gate: it needs a threshold and a measure")
        return cls(value["threshold"], value["measure"], value.get("model"), value.get("adapter"))

    def check(self, identity: Identity, adapter: Callable[[], str]) -> None:
        """Raise `ModelMismatchError` for a model, or an adapter, that it was not chosen for.

        Args:
          identity: of the model.
          adapter: tells the digest of the synthesizer's adapter.
        """
        if self.model is not None and not identity.matches(self.model):
            self._refuse("model", self.model)
        if self.adapter is not None and adapter() != self.adapter:
            self._refuse("adapter", self.adapter)

    def _refuse(self, what: str, chosen_for: str) -> NoReturn:
        raise ModelMismatchError(
            f"the gate was chosen for another {what} ({short(chosen_for)}): calibrate one for this {what}"
        )

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


def texts_of(branches: Branches | Sequence[Branches]) -> list[list[str]]:
    """Return the workers' texts by question; a worker that wrote nothing has a text, too."""
    joined = branches if isinstance(branches, Branches) else Branches.batch(branches)
    texts = []
    for group in joined.questions:
        texts.append([read_as(branch.text) for branch in group])
    return texts


def gated_answers(
    gate: Gate,
    questions: int,
    from_branches: FromBranches,
    from_texts: FromTexts,
    on_token: OnToken | None,
) -> list[SynthesisResult]:
    """Answer all questions from branches, and those whose answers are doubted from the texts.

    Args:
      questions: how many there are.
      from_branches: answers all of them; is given what tells of tokens.
      from_texts: answers some, by their numbers.
      on_token: is told of the answers that are taken.
    """
    if not gate.judges:
        if gate.reads_branches:
            return _marked(from_branches(on_token), "branches")
        return _marked(from_texts(range(questions), on_token), "text")
    pieces: list[StreamedToken] = []
    results = from_branches(pieces.append)
    waited = max(result.total_s for result in results)
    doubted = [row for row, result in enumerate(results) if not _is_taken(gate, result)]
    taken = [row for row in range(questions) if row not in doubted]
    _replay(pieces, taken, on_token)
    again = _from_fitting_texts(from_texts, doubted, on_token)
    _replay(pieces, [row for row in doubted if row not in again], on_token)
    for row, result in enumerate(results):
        if row in again:
            results[row] = _replaced(result, again[row], waited)
        else:
            results[row] = dataclasses.replace(result, ttft_s=waited, total_s=waited, route="branches")
    return results


def _marked(results: Sequence[SynthesisResult], route: Route) -> list[SynthesisResult]:
    return [dataclasses.replace(result, route=route) for result in results]


def _replay(pieces: Sequence[StreamedToken], rows: Sequence[int], on_token: OnToken | None) -> None:
    """Tell of answers that are taken, after all."""
    if on_token is None:
        return
    for piece in pieces:
        if piece.question in rows:
            on_token(piece)


def _is_taken(gate: Gate, result: SynthesisResult) -> bool:
    assert result.confidence is not None
    return gate.accepts(result.confidence)


def _from_fitting_texts(from_texts: FromTexts, rows: Sequence[int], on_token: OnToken | None) -> dict[int, SynthesisResult]:
    """Answer from the texts that fit the context window; where they do not, caches are all we have."""
    if not rows:
        return {}
    report = None if on_token is None else _renumbered(on_token, rows)
    try:
        # What does not fit is found before any work is done.
        return dict(zip(rows, from_texts(rows, report), strict=True))
    except ContextLengthError:
        if len(rows) == 1:
            return {}
    half = len(rows) // 2
    first = _from_fitting_texts(from_texts, rows[:half], on_token)
    return first | _from_fitting_texts(from_texts, rows[half:], on_token)


def _renumbered(on_token: OnToken, rows: Sequence[int]) -> OnToken:
    """Return what tells of a part of the questions by the numbers that they have among all."""

    def tell(piece: StreamedToken) -> None:
        row = rows[piece.question]
        on_token(piece.of_question(row))

    return tell


def _replaced(from_branches: SynthesisResult, from_text: SynthesisResult, waited: float) -> SynthesisResult:
    """Return the texts' answer in place of another, with the time and the tokens of both."""
    return dataclasses.replace(
        from_text,
        ttft_s=waited + from_text.ttft_s,
        total_s=waited + from_text.total_s,
        prompt_tokens=from_branches.prompt_tokens + from_text.prompt_tokens,
        cached_tokens=from_branches.cached_tokens,
        confidence=from_branches.confidence,
        route="text",
    )
