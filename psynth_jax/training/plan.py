"""Which examples form which batch: decided ahead of an epoch from their lengths alone.

Examples of about the same lengths share a batch, whose shape depends on nothing but these lengths, so that few programs are
compiled:

    examples, shuffled  ->  by shape  [ a b c . ]  [ long one ]      groups of so many examples and branches as a shape has
                        ->  a group for every micro-batch            batches, shuffled

Short examples are packed: the shorter they are, the more of them go into a group, up to a budget of tokens.  An example is
in exactly one batch of a pass; groups that stay unfilled at the end of an epoch are fed as they are.  Examples over the
limits are dropped and counted.  The same seed gives the same batches, over whatever devices they are spread.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.buckets import bucket
from psynth_jax.config import DecoderConfig
from psynth_jax.data.example import ExampleSource, Lengths
from psynth_jax.data.shards import digest
from psynth_jax.errors import DataError
from psynth_jax.training.config import Batches, Task

SMALLEST = 16  # tokens of the smallest padded row or target
FINEST = 8  # sizes of rows and targets between a power of two and the next
MOST_KEYS = 256  # from which the sizes that are compiled are chosen, which takes the cube of that
SAMPLED = 64  # examples of a task that a run is known again by
LISTED = 64  # a list of all tokens of a kind is a multiple of this
MOST_EMPTY_EPOCHS = 1000  # one after another that take no example, since weights are small
BLOCK = 512  # slots that a kernel reads at once; a shorter row is one block
EMPTY_SLOT = 0.15  # about what a slot behind a row's end costs, in tokens: it takes part in attention and nothing else


class Shape(NamedTuple):
    """Padded sizes of one micro-batch, of all devices together.

    examples: B.  rows: branch rows.  listed: tokens of all of them.  slots: S of a row.  width: W.  tokens: T of prompt and
    target; fed: of all examples.  targets: of the target.  teacher: T of the pasted text and the target, 0 where nobody
    reads it; taught: of all examples.
    """

    examples: int
    rows: int
    listed: int
    slots: int
    width: int
    tokens: int
    fed: int
    targets: int
    teacher: int
    taught: int


class Reference(NamedTuple):
    """An example by the number of its task and its own number in it."""

    task: int
    number: int


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """A group of examples for every micro-batch, all of the same shape."""

    shape: Shape
    groups: tuple[tuple[Reference, ...], ...]


def padded(tokens: int, steps: float = FINEST) -> int:
    """Round a number of tokens up to a multiple of 16, of 32 from 256 on, of 64 from 512 on, and so on.

    steps: sizes between a power of two and the next, 8, 4, 2, 1, 1/2, ...; the fewer, the more padding.
    """
    return SMALLEST * _rounded(-(-tokens // SMALLEST), steps)


def row_slots(tokens: int, steps: float = FINEST) -> int:
    """Return S of rows of so many tokens: what a kernel cuts into blocks, a row of at most 512 being one."""
    if tokens <= BLOCK:
        return padded(tokens, steps)
    return BLOCK * _rounded(-(-tokens // BLOCK), steps)


def _rounded(count: int, steps: float) -> int:
    if steps >= 1:
        step = max((1 << count.bit_length()) // int(2 * steps), 1)
        return -(-count // step) * step
    octaves = round(1 / steps)
    return 1 << -(-max(count - 1, 0).bit_length() // octaves) * octaves


class Plan:
    """The batches of every epoch.

    dropped: for every task, reason -> number of examples that no batch has.
    """

    def __init__(
        self,
        sources: Sequence[ExampleSource],
        tasks: Sequence[Task],
        limits: Batches,
        *,
        reads: str = "branches",
        config: DecoderConfig | None = None,
        seed: int | None = 0,
    ):
        """Look at the lengths of all examples.

        Args:
          sources, tasks: examples, and how each task is learned.
          limits: sizes of batches and the longest examples.
          reads: "branches" or "text".
          config: of the model; examples that need more positions than it has are dropped.
          seed: of the order; None: as they come.

        Raises:
          DataError: no example is left, or weights take none.
        """
        self._sources, self._tasks, self._reads, self._seed = sources, tasks, reads, seed
        self._groups = limits.accumulate
        self._kept: list[HostArray] = []
        self._known_passes: dict[tuple[int, int], HostArray] = {}
        self.dropped: list[dict[str, int]] = []
        for source, task in zip(sources, tasks, strict=True):
            lengths = source.lengths
            reasons = _too_long(lengths, limits, reads, config, teacher=task.distillation > 0)
            self._kept.append(np.flatnonzero(reasons == ""))
            self.dropped.append({str(reason): int(n) for reason, n in sorted(Counter(reasons).items()) if reason})
        if not any(len(kept) for kept in self._kept):
            raise DataError("no example is left to train on: " + (self._why() or "the data is empty"))
        share = sum(Fraction(str(task.weight)) * len(kept) for task, kept in zip(tasks, self._kept, strict=True))
        if share * MOST_EMPTY_EPOCHS < 1:
            raise DataError(f"the weights are so small that {MOST_EMPTY_EPOCHS} epochs take no example")
        finest, steps = self._padded_lengths(FINEST), float(FINEST)
        self._keys = finest
        while len(self._different_keys()) > MOST_KEYS:
            steps /= 2
            self._keys = self._padded_lengths(steps)
        sizes = self._sizes_by_key().items()
        merged = fewer_keys({key: (len(each), float(each[:, 0].mean())) for key, each in sizes}, limits.shapes)
        self._keys = self._largest_of(merged, finest)
        self._shapes = self._choose_shapes(limits)

    def _why(self) -> str:
        counts = sum((Counter(dropped) for dropped in self.dropped), Counter())
        return ", ".join(f"{count} have {reason}" for reason, count in counts.items())

    @property
    def shapes(self) -> list[Shape]:
        """Every shape that any batch can have."""
        return sorted(self._shapes.values())

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the first epoch, and of some of every task's examples: runs that agree in it are fed the same."""
        content = [digest(source, at_most=SAMPLED) for source in self._sources]
        return hashlib.sha256(repr((self.batches(0), content)).encode()).hexdigest()

    def batches(self, epoch: int) -> list[PlannedBatch]:
        """Return the batches of an epoch, from 0, in the order in which they are fed."""
        random = None if self._seed is None else np.random.default_rng((self._seed, epoch))
        open_groups: dict[tuple[int, ...], list[Reference]] = {}
        held: dict[tuple[int, ...], HostArray] = {}  # `_sizes` of an open group
        closed: dict[tuple[int, ...], list[tuple[Reference, ...]]] = {}
        for reference in self._order(epoch, random):
            key = tuple(int(x) for x in self._keys[reference.task][reference.number])
            shape = self._shapes[key]
            more = self._sizes(reference)
            together = held.get(key, 0) + more
            group = open_groups.setdefault(key, [])
            if len(group) == shape.examples or (together > (shape.rows, shape.listed, shape.fed, shape.taught)).any():
                closed.setdefault(key, []).append(tuple(group))
                group = open_groups[key] = []
                together = more
            group.append(reference)
            held[key] = together
        for key, group in open_groups.items():
            closed.setdefault(key, []).append(tuple(group))
        batches = [batch for key, groups in closed.items() for batch in self._batched(self._shapes[key], groups)]
        order = range(len(batches)) if random is None else random.permutation(len(batches))
        return [batches[index] for index in order]

    def _batched(self, shape: Shape, groups: list[tuple[Reference, ...]]) -> Iterable[PlannedBatch]:
        for first in range(0, len(groups), self._groups):
            together = groups[first : first + self._groups]
            missing = self._groups - len(together)
            yield PlannedBatch(shape, (*together, *[()] * missing))

    def _order(self, epoch: int, random: np.random.Generator | None) -> list[Reference]:
        """Return what an epoch takes of every task, mixed."""
        taken = []
        for number, (kept, task) in enumerate(zip(self._kept, self._tasks, strict=True)):
            share = Fraction(str(task.weight)) * len(kept)  # of no whole number, some epochs take one more than others
            for place in range(math.floor(epoch * share), math.floor((epoch + 1) * share)):
                taken.append(Reference(number, int(self._pass(number, place // len(kept))[place % len(kept)])))
        return taken if random is None else [taken[index] for index in random.permutation(len(taken))]

    def _pass(self, task: int, number: int) -> HostArray:
        """Return one whole pass over a task, in its order."""
        if self._seed is None:
            return self._kept[task]
        order = self._known_passes.get((task, number))
        if order is None:
            order = np.random.default_rng((self._seed, task, number, 1)).permutation(self._kept[task])
            self._known_passes = {key: known for key, known in self._known_passes.items() if key[0] != task}
            self._known_passes[task, number] = order
        return order

    def _sizes(self, reference: Reference) -> HostArray:
        """Return what an example adds to a group: branches, their tokens, and tokens of its rows for student and teacher."""
        sizes = Lengths(*(int(x) for x in self._sources[reference.task].lengths[reference.number]))
        branches = (sizes.branches, sizes.all_prefilled) if self._reads == "branches" else (0, 0)
        taught = fed_tokens(sizes, "text") if self._tasks[reference.task].distillation else 0
        return np.array([*branches, fed_tokens(sizes, self._reads), taught])

    def _padded_lengths(self, steps: float) -> list[HostArray]:
        """Return the keys of all examples, with so many sizes an octave."""
        return [
            _keys(source.lengths, self._reads, steps, teacher=task.distillation > 0)
            for source, task in zip(self._sources, self._tasks, strict=True)
        ]

    def _largest_of(self, merged: Mapping[tuple[int, ...], tuple[int, ...]], finest: Sequence[HostArray]) -> list[HostArray]:
        """Return every example's key: the largest of the finest sizes of all that were merged with it."""
        together = [np.array([merged.get(tuple(key), key) for key in keys.tolist()]).reshape(-1, 4) for keys in self._keys]
        largest: dict[tuple[int, ...], HostArray] = {}
        for kept, groups, keys in zip(self._kept, together, finest, strict=True):
            for index in kept:
                group = tuple(groups[index].tolist())
                largest[group] = np.maximum(largest.get(group, 0), keys[index])
        return [np.array([largest.get(tuple(key), key) for key in keys.tolist()]).reshape(-1, 4) for keys in together]

    def _different_keys(self) -> set[tuple[int, ...]]:
        return {
            tuple(key) for kept, keys in zip(self._kept, self._keys, strict=True) for key in np.unique(keys[kept], axis=0)
        }

    def _sizes_by_key(self) -> dict[tuple[int, ...], HostArray]:
        """Return the sizes of all examples of a key, `[E, 4]`."""
        found: dict[tuple[int, ...], list[HostArray]] = {}
        for task, (kept, keys) in enumerate(zip(self._kept, self._keys, strict=True)):
            for index in kept:
                found.setdefault(tuple(int(x) for x in keys[index]), []).append(self._sizes(Reference(task, int(index))))
        return {key: np.stack(sizes) for key, sizes in found.items()}

    def _choose_shapes(self, limits: Batches) -> dict[tuple[int, ...], Shape]:
        """Give every key its shape: as many examples as the budget allows, and what they need on average."""
        shapes = {}
        for key, each in self._sizes_by_key().items():
            slots, tokens, targets, teacher = key
            mean, most = each.mean(axis=0), each.max(axis=0)
            examples = _down(int(np.clip(limits.tokens / mean[1:].sum(), 1, min(limits.examples, len(each)))))
            rows, *lists = (int(x) for x in np.maximum(most, np.round(examples * mean)))
            listed, fed, taught = (-(-size // LISTED) * LISTED for size in lists)
            width = bucket(int(most[0])) if slots else 0
            shapes[key] = Shape(
                examples, bucket(rows) if slots else 0, listed, slots, width, tokens, fed, targets, teacher, taught
            )
        return shapes


def fed_tokens(sizes: Lengths, reads: str) -> int:
    """Count what one row of the synthesizer (reads "branches"), or of one that reads text, is fed of an example."""
    return (sizes.prompt if reads == "branches" else sizes.pasted) + sizes.target - 1


def _down(count: int) -> int:
    """Round down to 1, 2, 3, 4, 6, 8, 12, ..."""
    return count if bucket(count) == count else max(size for size in map(bucket, range(1, count)) if size <= count)


def _too_long(lengths: HostArray, limits: Batches, reads: str, config: DecoderConfig | None, *, teacher: bool) -> HostArray:
    """Return for every example why it is dropped, or ""."""
    columns = Lengths(*lengths.T)
    alone = columns.prefilled if reads == "branches" else columns.pasted + columns.target
    alone = np.maximum(alone, columns.pasted + columns.target if teacher else 0)
    reading = columns.kept + columns.prompt + columns.target if reads == "branches" else np.zeros(len(lengths), np.int64)
    most = np.inf if config is None else config.max_positions
    checks: list[tuple[str, Any]] = [
        ("a longer target than target_tokens", columns.target > limits.target_tokens),
        ("a longer text than text_tokens", (columns.pasted > limits.text_tokens) & (teacher or reads == "text")),
        ("a longer branch than branch_tokens", (columns.prefilled > limits.branch_tokens) & (reads == "branches")),
        ("more branches than branches", (columns.branches > limits.branches) & (reads == "branches")),
        ("a longer prompt than text_tokens", (columns.prompt > limits.text_tokens) & (reads == "branches")),
        ("more positions than the model has", np.maximum(alone, reading) > most),
    ]
    return np.select([check for _, check in checks], [reason for reason, _ in checks], "")


def _keys(lengths: HostArray, reads: str, steps: float, *, teacher: bool) -> HostArray:
    """Return for every example what decides its shape: `[E, 4]` slots, tokens, targets, teacher's tokens."""
    columns = Lengths(*lengths.T)
    round_up = np.vectorize(functools.partial(padded, steps=steps), otypes=[np.int64])
    slots = np.vectorize(functools.partial(row_slots, steps=steps), otypes=[np.int64])
    before = columns.prompt if reads == "branches" else columns.pasted
    if not len(lengths):
        return np.zeros((0, 4), np.int64)
    nothing = np.zeros(len(lengths), np.int64)
    with_teacher = round_up(columns.pasted + columns.target - 1) if teacher else nothing
    branch_slots = slots(columns.prefilled) if reads == "branches" else nothing
    tokens = round_up(before + columns.target - 1)
    return np.stack([branch_slots, tokens, round_up(columns.target), with_teacher], axis=1)


def fewer_keys(keys: Mapping[tuple[int, ...], tuple[int, float]], most: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return key -> the key that it is padded to, so that at most `most` are left and the least padding is added.

    Keys with and without a teacher stay apart: the one would run it for nothing.

    Args:
      keys: `(slots, tokens, targets, teacher)` -> how many examples, and how many branches they have on average.
      most: number of keys; the two kinds may need one more.
    """
    groups = {key: (count, branches, [key]) for key, (count, branches) in keys.items()}

    def merged(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        """Return the padding that a merger adds, in tokens, and its key."""
        together = tuple(max(pair) for pair in zip(a, b, strict=True))

        def cost(key: tuple[int, ...], count: int, branches: float) -> float:
            slots, tokens, targets, teacher = key
            return count * (EMPTY_SLOT * (branches * slots + tokens + teacher) + targets)

        return sum(cost(together, *groups[x][:2]) - cost(x, *groups[x][:2]) for x in (a, b)), together

    def may_merge(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return bool(a[3]) == bool(b[3])

    mergers = {(a, b): merged(a, b) for a, b in itertools.combinations(groups, 2) if may_merge(a, b)}
    while len(groups) > most and mergers:
        (_, together), a, b = min((merger, *pair) for pair, merger in mergers.items())
        gone = {a, b, together} & groups.keys()
        parts = [groups.pop(key) for key in gone]
        count = sum(part[0] for part in parts)
        branches = sum(part[0] * part[1] for part in parts) / count
        mergers = {pair: merger for pair, merger in mergers.items() if gone.isdisjoint(pair)}
        others = [key for key in groups if may_merge(key, together)]
        groups[together] = count, branches, [key for part in parts for key in part[2]]
        mergers |= {(key, together): merged(key, together) for key in others}
    return {key: together for together, (_, _, known) in groups.items() for key in known}
