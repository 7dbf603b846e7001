"""What runs the sequences of one `ParallelSynthesis`: its model's machine, and one pool for all that it caches."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from psynth_jax.axes import HostArray
from psynth_jax.branch import Branch
from psynth_jax.branches import first_position, read_tokens
from psynth_jax.engine.machine import branch_block, home_block, machine_of
from psynth_jax.engine.programs import Programs
from psynth_jax.engine.sequences import GREEDY, BranchRead, Listener, PositionedRun, SequenceSampling, TokenSequence
from psynth_jax.engine.step import Conditioning
from psynth_jax.errors import NotFiniteError
from psynth_jax.kv.pool import Lease, Pool
from psynth_jax.mapper import Mapper
from psynth_jax.model import Model
from psynth_jax.ops.branch_attention import Implementation
from psynth_jax.sharding import BRANCH, put, replicated, shards
from psynth_jax.synthesis.recompute import check_count


class Runner:
    """Makes sequences over one pool, and runs them.

    cache_dtype: of the pool; None is the model's own.  vocabulary: tokens that may be sampled.
    conditioning: what rows with a scale above 0 are run with.
    """

    def __init__(self, model: Model, implementation: Implementation, cache_dtype: str | None, vocabulary: int):
        """Take the model's machine."""
        self.machine = machine_of(model, implementation)
        self.cache_dtype = cache_dtype or model.decoder.dtype.name
        self.vocabulary = vocabulary
        self.conditioning = Conditioning()

    @property
    def mesh(self) -> Mesh | None:
        """The devices that everything runs on; None: one."""
        return self.machine.mesh

    @property
    def programs(self) -> Programs:
        """The compiled programs."""
        return self.machine.programs

    @property
    def pool(self) -> Pool:
        """Where keys and values are."""
        return self.machine.pool(self.cache_dtype)

    def now(self) -> float:
        """Return a clock's seconds without those in which this thread waited for a compilation."""
        return self.machine.programs.now()

    def placed(self, mapper: Mapper | None) -> Mapper | None:
        """Return a mapper on the devices of the model."""
        if self.mesh is None:
            return jax.device_put(mapper)
        everywhere = replicated(self.mesh)
        return jax.tree.map(lambda x: put(np.asarray(x), everywhere), mapper)

    def home_block(self, question: int, questions: int) -> int:
        """Return the block on which a question of a batch is answered."""
        return home_block(self.machine, question, questions)

    def branch_block(self, question: int, questions: int, number: int) -> int:
        """Return the block of a branch of a question of a batch."""
        return branch_block(self.machine, question, questions, number)

    def reserve(self, slots: int, block: int) -> Lease:
        """Return room for `slots` tokens.  Raises `MemoryLimitError` as `Pool.reserve` does."""
        return self.machine.pool(self.cache_dtype, slots).reserve(slots, block)

    def sequence(
        self,
        prompt: Sequence[int],
        new_tokens: int,
        listener: Listener,
        block: int,
        *,
        sampling: SequenceSampling = GREEDY,
        branches: Sequence[BranchRead] = (),
        shared: Sequence[PositionedRun] = (),
        kept: Sequence[Lease] = (),
        position: int = 0,
        scale: float = 0.0,
    ) -> TokenSequence:
        """Return a sequence with room for its prompt and `new_tokens` more; see `TokenSequence`."""
        lease = self.reserve(len(prompt) + new_tokens, block)
        return TokenSequence(
            prompt,
            lease,
            listener,
            branches=branches,
            shared=shared,
            kept=kept,
            position=position,
            sampling=sampling,
            scale=scale,
            vocabulary=self.vocabulary,
        )

    def run(self, sequences: Sequence[TokenSequence]) -> None:
        """Take sequences to their end."""
        self.machine.scheduler(self.cache_dtype).run(sequences, self._conditioning_of(sequences))

    def score(self, sequences: Sequence[TokenSequence], targets: Sequence[Sequence[int]]) -> list[HostArray]:
        """Return the log-probabilities of what follows each token; see `Scheduler.score`."""
        conditioning = self._conditioning_of(sequences)
        return self.machine.scheduler(self.cache_dtype).score(sequences, targets, conditioning)

    def _conditioning_of(self, sequences: Sequence[TokenSequence]) -> Conditioning:
        """Return what a call runs with: always the same, so that workers and synthesizers share programs.

        But on a mesh the LoRA of rows that do not use it would be summed over devices: there the base has its own.
        """
        if self.mesh is not None and all(sequence.scale == 0 for sequence in sequences):
            return Conditioning()
        return self.conditioning

    def reads(self, branches: Sequence[Branch], block: int) -> tuple[tuple[BranchRead, ...], list[Lease]]:
        """Return branches as a sequence on `block` reads them, and the leases that keep their slots.

        Branches that are not in this pool, or not on the part of `data` of the block, are copied there, once.  On a mesh
        copies go round the blocks of that part.
        """
        found: list[BranchRead] = []
        kept: list[Lease] = []
        copied = 0
        for branch in branches:
            runs: list[PositionedRun] = []
            for segment in branch.segments:
                to = self.branch_block(0, 1, copied) + block
                lease = self.machine.held_in(self.pool, self.cache_dtype, segment.held, to)
                copied += lease is not segment.held
                kept.append(lease)
                runs += positioned(lease, segment.position)
            found.append(BranchRead(tuple(runs), branch.shift, branch.span))
        return tuple(found), kept


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question, ready to be answered.

    block: where.  branches: what it reads.  position: of the first token of its prompt.  cached_tokens: that it reads.
    kept: the leases of its branches.
    """

    block: int
    branches: tuple[BranchRead, ...]
    position: int
    cached_tokens: int
    kept: list[Lease]


def positions_of(groups: Sequence[Sequence[Branch]] | None, count: int) -> list[int]:
    """Return the position of the first token of the prompt of each of `count` questions.

    Raises `InputError` where there are branches of another number of questions.
    """
    if groups is None:
        return [0] * count
    check_count(groups, count)
    # Where nothing is read from caches, as when all is encoded again, a question starts as a text does.
    return [first_position(group) if read_tokens(group) else 0 for group in groups]


def asked_of(runner: Runner, groups: Sequence[Sequence[Branch]] | None, count: int) -> list[Asked]:
    """Return where each of `count` questions is answered, and what it reads.

    Raises `InputError` where there are branches of another number of questions.
    """
    asked = []
    for number, position in enumerate(positions_of(groups, count)):
        group = () if groups is None else groups[number]
        block = _home_of(runner, group, runner.home_block(number, count))
        branches, kept = runner.reads(group, block)
        asked.append(Asked(block, branches, position, read_tokens(group), kept))
    return asked


def _home_of(runner: Runner, group: Sequence[Branch], block: int) -> int:
    """Return the first block of the part of `data` where most of a question's branches are; else `block`."""
    width = shards(runner.mesh, (BRANCH,))
    found = collections.Counter[int]()
    for branch in group:
        for segment in branch.segments:
            if isinstance(segment.held, Lease) and segment.held.pool is runner.pool:
                found[segment.held.runs[0].block // width * width] += 1
    return found.most_common(1)[0][0] if found else block


def positioned(lease: Lease, position: int) -> list[PositionedRun]:
    """Return the runs of a lease whose first slot is seen at `position`."""
    runs = []
    for run in lease.runs:
        runs.append(PositionedRun(run, position))
        position += run.length
    return runs


def not_finite(runner: Runner, what: str) -> NotFiniteError:
    """Return the error for numbers that are NaN or infinite; `what` says where they were met."""
    dtype = runner.machine.model.dtype.name
    if dtype == "float16":
        why = "float16 overflows above 65,504: load the model with dtype bfloat16 or float32"
    elif runner.cache_dtype == "float16":
        why = "float16 overflows above 65,504: use another cache_dtype, such as bfloat16"
    else:
        why = "the weights, the adapter or the branches hold NaN or infinities, or numbers that overflow"
    return NotFiniteError(f"{what} are not finite numbers ({dtype}): {why}")
