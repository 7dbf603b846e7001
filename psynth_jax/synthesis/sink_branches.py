"""An adapter's sink as branches that every question reads first."""

from __future__ import annotations

from collections.abc import Sequence

from psynth_jax.branch import Branch
from psynth_jax.model import Model
from psynth_jax.sharding import DATA, shards
from psynth_jax.synthesis.runner import Runner
from psynth_jax.synthesis.workers import WorkerPrompt, encode_texts


class SinkBranches:
    """What an adapter's sink says is the same for all questions: there is one branch on every part of `data`.

    ids: the sink's tokens; there may be none.
    """

    def __init__(self, ids: Sequence[int], model: Model, runner: Runner):
        """Encode nothing yet."""
        self.ids = tuple(ids)
        self._model, self._runner = model, runner
        self._made: list[Branch] = []

    @property
    def count(self) -> int:
        """How many branches each question reads before its own."""
        return 1 if self.ids else 0

    def before(self, questions: Sequence[Sequence[Branch]]) -> Sequence[Sequence[Branch]]:
        """Return the branches of questions behind the sink."""
        if not self.ids:
            return questions
        sinks, count = self._branches(), len(questions)
        return [[sinks[number * len(sinks) // count], *group] for number, group in enumerate(questions)]

    def _branches(self) -> list[Branch]:
        """Return the sinks: encoded at the first call, and again where a failed step has lost them."""
        made = self._made
        if not made or any(sink.lost for sink in made):
            parts = range(shards(self._model.mesh, (DATA,)))
            prompts = [WorkerPrompt(part, 0, (), given=self.ids) for part in parts]
            made = self._made = encode_texts(self._runner, prompts, self._model.tokenizer, "exact")
        return made
