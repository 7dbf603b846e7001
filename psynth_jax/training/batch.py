"""A planned batch as arrays: branches of all its examples in rows, and what the synthesizer, and its teacher, are fed.

    branches  [X, Z]       all branches of a device one behind the other, each its prefix and then what is kept; they
                           become rows [rows, S] of a cache, one branch a row, dealt over a shard's branch blocks
    student   [X, Z']      prompt and target of every example, but for the target's last token, one behind the other too
    at        [B, M]       place in that list which predicts target token m
    target    [B, M]       weight 0 where there is none

Every array has a leading axis of micro-batches.  On a mesh B and the student's X are cut over (data, fsdp), the branches' X
and rows over (data, fsdp, branch); each process reads only the examples of its own devices, the others stay zeros that
nobody sees.  Knows no model.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from psynth_jax.axes import Array, HostArray
from psynth_jax.data.example import BranchTokens, Example, ExampleSource, Lengths
from psynth_jax.sharding import BRANCH, DATA, FSDP, put, shards
from psynth_jax.training.config import Task
from psynth_jax.training.plan import SMALLEST, PlannedBatch, Reference, Shape, fed_tokens
from psynth_jax.training.vocabulary import check_example

QUESTION_AXES = (DATA, FSDP)
BRANCH_ROW_AXES = (DATA, FSDP, BRANCH)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fed:
    """Rows for the synthesizer or its teacher, as `nn.ragged` has them: tokens `[.., X, Z]`; first, count `[.., B]`.

    at `[.., B, M]`: places in the list of a row's piece.  slots: T of the longest row.
    """

    tokens: Array
    first: Array
    count: Array
    at: Array
    slots: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BranchRows:
    """Branches, a row each, as `nn.ragged` has them: tokens `[.., X, Z]`; first, count `[.., rows]`.

    row, prefix, kept `[.., B, W]`: where each example's branches are, tokens that stand before them, tokens that are kept.
    slots: S.
    """

    tokens: Array
    first: Array
    count: Array
    row: Array
    prefix: Array
    kept: Array
    slots: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One step's examples.  teacher, branches: None where nothing reads them.

    target `[.., B, M]` int32, weight `[.., B, M]` float32; task `[.., B]` int32, its objectives' weights cross_entropy and
    distillation `[.., B]` float32.
    """

    student: Fed
    target: Array
    weight: Array
    task: Array
    cross_entropy: Array
    distillation: Array
    branches: BranchRows | None
    teacher: Fed | None


@dataclasses.dataclass(frozen=True)
class Counts:
    """What is real in a batch, of all processes.

    Tokens of branches, of prompts, of targets, and of the teacher's text with its targets; and pairs of a query and a key
    that it sees: when branches are encoded, for the synthesizer, for its teacher.
    """

    examples: int = 0
    branch_tokens: int = 0
    prompt_tokens: int = 0
    target_tokens: int = 0
    teacher_tokens: int = 0
    branch_pairs: int = 0
    student_pairs: int = 0
    teacher_pairs: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Add two batches."""
        return Counts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


class BatchBuilder:
    """Makes arrays of planned batches."""

    def __init__(
        self,
        sources: Sequence[ExampleSource],
        tasks: Sequence[Task],
        *,
        reads: str = "branches",
        mesh: Mesh | None = None,
        micro_batches: int = 1,
        model: tuple[str, int] | None = None,
    ):
        """Take examples by task, how each is learned, and where the arrays will lie.

        model: name and rows of the model's embedding, which every token id must be one of; None: not looked at.
        """
        self._model = model
        self._sources, self._tasks, self._reads = sources, tasks, reads
        self._micro_batches = micro_batches
        self._shards = shards(mesh, QUESTION_AXES)
        self._branch_shards = shards(mesh, (BRANCH,))
        self._here = _shards_here(mesh, self._shards)

    def counts(self, planned: PlannedBatch) -> Counts:
        """Count what a batch holds, from lengths alone; branches of an example count as equally long."""
        total = Counts()
        for task, number in (reference for group in planned.groups for reference in group):
            sizes = self._lengths(Reference(task, number))
            reads_branches, pasted = self._reads == "branches", sizes.pasted + sizes.target
            prompt = sizes.prompt if reads_branches else sizes.pasted
            fed, cached = prompt + sizes.target, sizes.all_prefilled if reads_branches else 0
            teacher = pasted if planned.shape.teacher else 0
            total += Counts(
                examples=1,
                branch_tokens=cached,
                prompt_tokens=prompt,
                target_tokens=sizes.target,
                teacher_tokens=teacher,
                branch_pairs=cached * cached // (2 * max(sizes.branches, 1)),
                student_pairs=fed * cached + fed * fed // 2,
                teacher_pairs=teacher * teacher // 2,
            )
        return total

    def build(self, planned: PlannedBatch) -> tuple[Batch, Shape]:
        """Return a batch as host arrays of its global shape, and that shape: what it was planned as, or a little more.

        Shards have room for the same number of examples and rows, whichever of them needs the most.
        """
        spread = [self._spread(group, planned.shape) for group in planned.groups]
        shape = planned.shape
        if self._shards > 1 or self._branch_shards > 1:
            shape = self._roomier(shape, list(itertools.chain.from_iterable(spread)))
        batch = empty_batch(shape, self._micro_batches, self._shards, self._branch_shards)
        for micro, held_by_shard in enumerate(spread):
            for shard in self._here:
                self._fill_shard(batch, shape, micro, shard, held_by_shard[shard])
        return batch, shape

    def _lengths(self, reference: Reference) -> Lengths:
        return Lengths(*(int(x) for x in self._sources[reference.task].lengths[reference.number]))

    def _branches(self, reference: Reference) -> int:
        return self._lengths(reference).branches if self._reads == "branches" else 0

    def _listed(self, reference: Reference) -> int:
        """Return the most tokens of an example that one branch block can get, from lengths alone."""
        sizes = self._lengths(reference)
        return min(sizes.all_prefilled, -(-sizes.branches // self._branch_shards) * sizes.prefilled)

    def _roomier(self, shape: Shape, by_shard: Sequence[Sequence[Reference]]) -> Shape:
        """Return a shape with room for what any shard holds in every shard.

        All sizes grow by the same quarters, so that few shapes come of one: each is compiled.
        """
        pieces = self._shards * self._branch_shards
        needs: list[tuple[int, int, Callable[[Reference], int]]] = [
            (shape.rows, self._shards, self._branches),
            (shape.listed, pieces, self._listed),
            (shape.fed, self._shards, self._fed),
            (shape.taught, self._shards, self._taught),
        ]
        quarters = 4
        for planned, parts, of in needs:
            if planned:
                longest = max(sum(of(reference) for reference in held) for held in by_shard)
                quarters = max(quarters, -(-4 * longest * parts // planned))

        def room(planned: int, parts: int, multiple: int) -> int:
            return -(-planned * quarters // (4 * parts * multiple)) * multiple * parts

        return shape._replace(
            examples=-(-shape.examples // self._shards) * self._shards,
            rows=room(shape.rows, self._shards, self._branch_shards),
            listed=room(shape.listed, pieces, SMALLEST),
            fed=room(shape.fed, self._shards, SMALLEST),
            taught=room(shape.taught, self._shards, SMALLEST),
        )

    def _fed(self, reference: Reference) -> int:
        return fed_tokens(self._lengths(reference), self._reads)

    def _taught(self, reference: Reference) -> int:
        return fed_tokens(self._lengths(reference), "text")

    def _spread(self, group: Sequence[Reference], shape: Shape) -> list[list[Reference]]:
        """Give every shard its part of a group: equally many examples, branches about equally many."""
        places = -(-shape.examples // self._shards)
        held: list[list[Reference]] = [[] for _ in range(self._shards)]
        rows = [0] * self._shards
        for reference in sorted(group, key=self._branches, reverse=True) if self._shards > 1 else group:
            free = (shard for shard in range(self._shards) if len(held[shard]) < places)
            shard = min(free, key=lambda shard: (rows[shard], len(held[shard])))
            held[shard].append(reference)
            rows[shard] += self._branches(reference)
        return held

    def _fill_shard(self, batch: Batch, shape: Shape, micro: int, shard: int, held: Sequence[Reference]) -> None:
        rows, by_row = shape.rows // self._shards, dict[int, BranchTokens]()
        places = shape.examples // self._shards
        first, fed, taught = shard * places, 0, 0
        for place, (task, index) in enumerate(held):
            example = self._sources[task][index]
            if self._model is not None:
                name, rows_of_model = self._model
                check_example(example, self._sources[task].task, index, rows_of_model, name)
            at = micro, first + place
            self._fill(batch, at, example, task)
            before = example.prompt if self._reads == "branches" else example.pasted
            fed = _feed(batch.student, at, shard, fed, before, example.target)
            if batch.teacher is not None:
                taught = _feed(batch.teacher, at, shard, taught, example.pasted, example.target)
            for number, branch in enumerate(example.branches if batch.branches is not None else ()):
                assert batch.branches is not None
                row = shard * rows + self._dealt(len(by_row), rows)
                by_row[row] = branch
                at_branch = (*at, number)
                batch.branches.row[at_branch] = row
                batch.branches.prefix[at_branch], batch.branches.kept[at_branch] = len(branch.prefix), len(branch.kept)
        for part, end in ((batch.student, fed), (batch.teacher, taught)):
            if part is not None:  # places without an example begin where the last one ends
                part.first[micro, first + len(held) : first + places] = end
        if batch.branches is not None:
            for block in range(self._branch_shards):
                _fill_list(batch.branches, micro, shard * self._branch_shards + block, by_row)

    def _dealt(self, number: int, rows: int) -> int:
        """Return the row of a shard that its branch of this number gets: round robin over the shard's branch blocks."""
        nth, block = divmod(number, self._branch_shards)
        return block * (rows // self._branch_shards) + nth

    def _fill(self, batch: Batch, at: tuple[int, int], example: Example, task: int) -> None:
        size = len(example.target)
        batch.target[at][:size], batch.weight[at][:size] = example.target, 1.0
        batch.task[at] = task
        batch.cross_entropy[at] = self._tasks[task].cross_entropy
        batch.distillation[at] = self._tasks[task].distillation


def _feed(fed: Fed, at: tuple[int, int], piece: int, first: int, before: HostArray, target: HostArray) -> int:
    """Write a row from a place of its piece's list on; return the place behind it."""
    micro, _ = at
    end = first + len(before) + len(target) - 1
    fed.tokens[micro, piece, first:end] = np.concatenate([before, target[:-1]])
    fed.first[at], fed.count[at] = first, end - first
    fed.at[at][: len(target)] = np.arange(first + len(before) - 1, end)
    return end


def _fill_list(branches: BranchRows, micro: int, piece: int, by_row: Mapping[int, BranchTokens]) -> None:
    """Write one piece's branches one behind the other, in the order of their rows."""
    rows, place = branches.first.shape[1] // branches.tokens.shape[1], 0
    for row in range(piece * rows, (piece + 1) * rows):
        branch = by_row.get(row)
        branches.first[micro, row] = place
        if branch is not None:
            end = place + branch.length
            branches.tokens[micro, piece, place:end] = np.concatenate([branch.prefix, branch.kept])
            branches.count[micro, row] = branch.length
            place = end


def empty_batch(shape: Shape, micro_batches: int = 1, pieces: int = 1, blocks: int = 1) -> Batch:
    """Return the arrays of a batch that holds no example yet.

    pieces: into how many a mesh cuts the examples; blocks: into how many it cuts the branches of a piece.
    """

    def zeros(*sizes: int, dtype: Any = np.int32) -> HostArray:
        return np.zeros((micro_batches, *sizes), dtype)

    count, rows = shape.examples, shape.rows

    def fed(listed: int, longest: int) -> Fed:
        return Fed(zeros(pieces, listed // pieces), zeros(count), zeros(count), zeros(count, shape.targets), longest)

    branches = None
    if shape.rows:
        row, prefix, kept = (zeros(count, shape.width) for _ in range(3))
        lists = zeros(pieces * blocks, shape.listed // (pieces * blocks))
        branches = BranchRows(lists, zeros(rows), zeros(rows), row, prefix, kept, shape.slots)
    return Batch(
        student=fed(shape.fed, shape.tokens),
        target=zeros(count, shape.targets),
        weight=zeros(count, shape.targets, dtype=np.float32),
        task=zeros(count),
        cross_entropy=zeros(count, dtype=np.float32),
        distillation=zeros(count, dtype=np.float32),
        branches=branches,
        teacher=fed(shape.taught, shape.teacher) if shape.teacher else None,
    )


def _shards_here(mesh: Mesh | None, count: int) -> Collection[int]:
    """Return the numbers of the shards of examples that this process's devices hold."""
    if mesh is None:
        return range(1)
    cut = NamedSharding(mesh, P(QUESTION_AXES))
    held = cut.addressable_devices_indices_map((count,)).values()
    return {number for index in held if index is not None for number in range(*index[0].indices(count))}


def batch_shardings(batch: Batch, mesh: Mesh) -> Batch:
    """Return how every array of a batch is cut over a mesh."""
    questions, rows = (NamedSharding(mesh, P(None, axes)) for axes in (QUESTION_AXES, BRANCH_ROW_AXES))
    cut = jax.tree.map(lambda _: questions, batch)
    if cut.branches is None:
        return cut
    return dataclasses.replace(cut, branches=dataclasses.replace(cut.branches, tokens=rows, first=rows, count=rows))


def place(batch: Batch, mesh: Mesh | None) -> Batch:
    """Move a batch to its devices."""
    if mesh is None:
        return jax.device_put(batch)
    return jax.tree.map(put, batch, batch_shardings(batch, mesh))
