"""What runs the sequences of one `ParallelSynthesis`: its model's machine, and one pool for all that it caches."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from psynth_jax.branch import Branch
from psynth_jax.branches import first_position, read_tokens
from psynth_jax.engine.machine import branch_block, home_block, machine_of
from psynth_jax.engine.programs import Programs
from psynth_jax.engine.scheduler import Scheduler
from psynth_jax.engine.sequences import BASE, GREEDY, BranchRead, Listener, PositionedRun, SequenceSampling, TokenSequence
from psynth_jax.engine.step import Conditioning
from psynth_jax.errors import NotFiniteError
from psynth_jax.kv.pool import Lease, Pool
from psynth_jax.mapper import Mapper
from psynth_jax.model import Model
from psynth_jax.ops.branch_attention import Implementation
from psynth_jax.sharding import BRANCH, put, replicated, shards
from psynth_jax.synthesis.recompute import check_count

SHORTEST_SHARED_PREFIX = 16  # below this, one more piece of cache costs more than it saves
_adapters = itertools.count(1)  # no two conditionings of this process share a prompt


class Runner:
    """Makes sequences over one pool, and runs them.

    cache_dtype: of the pool; None is the model's own.  vocabulary: tokens that may be sampled.
    """

    def __init__(
        self,
        model: Model,
        implementation: Implementation,
        cache_dtype: str | None,
        vocabulary: int,
        pool_tokens: int | None = None,
    ):
        """Take the model's machine.  pool_tokens: slots of a pool of its own; None: that of the machine."""
        self.machine = machine_of(model, implementation)
        self.cache_dtype = cache_dtype or model.decoder.dtype.name
        self.vocabulary = vocabulary
        self._own: Scheduler | None = None
        if pool_tokens is not None:
            self._own = self.machine.scheduler_of_its_own(self.cache_dtype, pool_tokens)
        self.condition(BASE)

    def condition(self, conditioning: Conditioning) -> None:
        """Run rows with a scale above 0 with another LoRA and mapper; sequences that exist keep theirs."""
        # One assignment: other threads make sequences meanwhile.
        self._conditioned = conditioning, next(_adapters) if conditioning.parts else None

    @property
    def conditioning(self) -> Conditioning:
        """What rows with a scale above 0 are run with."""
        return self._conditioned[0]

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
        return self.scheduler_for(0).pool

    @property
    def scheduler(self) -> Scheduler:
        """What runs sequences over the pool."""
        return self.scheduler_for(0)

    def scheduler_for(self, slots: int) -> Scheduler:
        """Return the scheduler.  slots: that its first sequences take, for the size of a new pool."""
        return self._own or self.machine.scheduler(self.cache_dtype, slots)

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
        return self.scheduler_for(slots).pool.reserve(slots, block)

    def counts(self) -> dict[str, int | float]:
        """Return what there is and what was done, by name; see `Engine.stats`."""
        pool, programs = self.pool, self.programs
        found: dict[str, int | float] = {"pool_tokens": pool.allocator.blocks * pool.allocator.slots}
        found["used_tokens"], found["prefix_tokens"] = pool.used_slots, pool.prefix_slots
        for name in ("prefix_hit_tokens", "prefill_tokens", "decode_tokens", "compactions", "cancelled", "failed"):
            found[name] = self.scheduler.counts[name]
        found["evictions"] = pool.prefixes.evictions
        found["programs"], found["compilations"] = len(programs), programs.compilations
        found["compile_seconds"] = programs.compile_seconds
        return found

    def forget_copies(self) -> None:
        """Let go of what was copied into a pool of its own; it is copied again when it is read."""
        if self._own is not None:
            self.machine.forget_copies(self._own.pool)

    def forget_prompts(self) -> None:
        """Share nothing of what was run so far."""
        with self.pool.lock:
            self.pool.prefixes.clear()

    def sequence(
        self,
        prompt: Sequence[int],
        new_tokens: int,
        listener: Listener,
        block: int,
        *,
        draws: int | None = None,
        sampling: SequenceSampling = GREEDY,
        branches: Sequence[BranchRead] = (),
        kept: Sequence[Lease] = (),
        position: int = 0,
        scale: float = 0.0,
        salt: Hashable = (None,),
        least_shared: int = SHORTEST_SHARED_PREFIX,
        targets: Sequence[int] | None = None,
        on_end: Callable[[TokenSequence], None] | None = None,
    ) -> TokenSequence:
        """Return a sequence that is to be run; see `TokenSequence`."""
        # On a mesh the LoRA of rows that do not use it would be summed over devices: there the base
        # has programs of its own.  Elsewhere workers and synthesizers share theirs.
        is_base = self.mesh is not None and scale == 0
        conditioning, adapter = self._conditioned
        return TokenSequence(
            prompt,
            listener,
            new_tokens=new_tokens,
            draws=draws,
            vocabulary=self.vocabulary,
            block=block,
            branches=branches,
            kept=kept,
            position=position,
            sampling=sampling,
            conditioning=BASE if is_base else conditioning,
            scale=scale,
            adapter=adapter,
            salt=salt,
            least_shared=least_shared,
            targets=targets,
            on_end=on_end,
        )

    def run(self, sequences: Sequence[TokenSequence], hear: Callable[[], None] | None = None) -> None:
        """Take sequences to their end; see `Scheduler.run`."""
        slots = sum(sequence.prompt_length + sequence.new_tokens for sequence in sequences)
        self.scheduler_for(slots).run(sequences, hear)

    def reads(self, branches: Sequence[Branch], block: int) -> tuple[tuple[BranchRead, ...], list[Lease]]:
        """Return branches as a sequence on `block` reads them, and the leases that keep their slots.

        Branches that are not in this pool, or not on the part of `data` of the block, are copied there, once.  On a mesh
        copies go round the blocks of that part.
        """
        width = shards(self.mesh, (BRANCH,))
        first = block // width * width
        found: list[BranchRead] = []
        kept: list[Lease] = []
        copied = block - first
        for branch in branches:
            runs: list[PositionedRun] = []
            for segment in branch.segments:
                to = first + copied % width
                lease = self.machine.held_in(self.pool, segment.held, to)
                copied += lease is not segment.held
                kept.append(lease)
                runs += positioned(lease, segment.position)
            found.append(BranchRead(tuple(runs), branch.shift, branch.span, branch.serial))
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


def asked_of(runner: Runner, groups: Sequence[Sequence[Branch]] | None, count: int, home: int | None = None) -> list[Asked]:
    """Return where each of `count` questions is answered, and what it reads.

    home: the block for those of which nothing lies anywhere; None: they are dealt over the parts of
    `data`.

    Raises `InputError` where there are branches of another number of questions.
    """
    asked = []
    for number, position in enumerate(positions_of(groups, count)):
        group = () if groups is None else groups[number]
        block = _home_of(runner, group, runner.home_block(number, count) if home is None else home)
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
