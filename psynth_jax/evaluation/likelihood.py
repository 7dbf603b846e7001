"""How surprised a synthesizer is by the right answers: their negative log-likelihood, by task.

    record -> log-probability of each token of its target -> minus their mean -> mean over records, with an interval

It moves earlier than F1 when an adapter learns, and needs no answer to be written.  The end token is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from psynth_jax.axes import HostArray
from psynth_jax.branches import Branches
from psynth_jax.data.record import Record
from psynth_jax.errors import InputError
from psynth_jax.evaluation.intervals import Interval, difference_interval, mean_interval
from psynth_jax.prompts import baseline_messages
from psynth_jax.synthesis.inputs import tokenizer_of
from psynth_jax.synthesis.pipeline import ParallelSynthesis

Reads: TypeAlias = Literal["branches", "text"]
OnBatch: TypeAlias = Callable[[int], None]


def negative_log_likelihoods(
    synths: Sequence[ParallelSynthesis],
    records: Sequence[Record],
    reads: Reads = "branches",
    batch: int = 8,
    on_batch: OnBatch = lambda done: None,
) -> list[list[float]]:
    """Return minus the mean log-probability of a target's tokens, in nats, by synthesizer and record.

    Args:
      synths: one model with different adapters.  Those with the same sink read the same caches,
        which are computed once.
      records: in the order of the results.
      reads: caches of the branches, or their concatenated text.
      batch: records that are scored at once; those of similar size are taken together.
      on_batch: called with the number of records of each batch when it is done.

    Raises what `ParallelSynthesis.score` raises.
    """
    found = [[0.0] * len(records) for _ in synths]
    order = sorted(range(len(records)), key=lambda number: _size(records[number]))
    for first in range(0, len(order), batch):
        numbers = order[first : first + batch]
        chosen = [records[number] for number in numbers]
        scored = _from_branches(synths, chosen) if reads == "branches" else _from_text(synths, chosen)
        for own, logps in zip(found, scored, strict=True):
            for number, logp in zip(numbers, logps, strict=True):
                own[number] = -float(logp.mean())
        on_batch(len(numbers))
    return found


def _size(record: Record) -> int:
    return sum(len(branch.text) for branch in record.branches)


def _from_branches(synths: Sequence[ParallelSynthesis], records: Sequence[Record]) -> Iterator[Sequence[HostArray]]:
    queries = [record.query for record in records]
    targets = [record.target for record in records]
    encode = tokenizer_of(synths[0].model).encode
    texts, prefixes = [], []
    for record in records:
        texts.append([branch.text for branch in record.branches])
        prefixes.append([encode(branch.prefix) for branch in record.branches])
    known: dict[tuple[int, ...], Branches] = {}
    for synth in synths:
        sink = tuple(synth.adapter.sink)
        if sink not in known:
            known[sink] = synth.encode(texts, prefixes)
        yield synth.score(queries, targets, known[sink])


def _from_text(synths: Sequence[ParallelSynthesis], records: Sequence[Record]) -> Iterator[Sequence[HostArray]]:
    chats, targets = [], [record.target for record in records]
    for record in records:
        chats.append(baseline_messages(record.query, [branch.text for branch in record.branches]))
    for synth in synths:
        yield synth.score(chats, targets)


@dataclasses.dataclass(frozen=True)
class TaskLikelihood:
    """The records of a task: how many, the mean of the first synthesizer, of the second, and the paired difference."""

    records: int
    first: Interval
    second: Interval | None = None
    difference: Interval | None = None


def by_task(
    records: Sequence[Record], first: Sequence[float], second: Sequence[float] | None, seed: int = 0
) -> Mapping[str, TaskLikelihood]:
    """Return means with 95% bootstrap intervals by task, sorted; several tasks are followed by "all".

    second: of another synthesizer on the same records; the difference is first - second, paired: below 0 the first is less
    surprised.

    Raises `InputError` for no record.
    """
    if not records:
        raise InputError("there is no record to be scored")
    places: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault(record.task, []).append(place)
    found = {task: _of_places(places[task], first, second, seed) for task in sorted(places)}
    if len(places) > 1:
        found["all"] = _of_places(range(len(records)), first, second, seed)
    return found


def _of_places(places: Sequence[int], first: Sequence[float], second: Sequence[float] | None, seed: int) -> TaskLikelihood:
    own = [first[place] for place in places]
    if second is None:
        return TaskLikelihood(len(places), mean_interval(own, seed))
    other = [second[place] for place in places]
    difference = difference_interval(own, other, seed)
    return TaskLikelihood(len(places), mean_interval(own, seed), mean_interval(other, seed), difference)
