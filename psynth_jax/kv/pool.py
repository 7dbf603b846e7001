"""The pool of slots: one donated buffer of keys and values, cut into blocks, and leases on parts of it.

    heads     L R K S H          R blocks of S slots, over (data, branch) of a mesh; one block on a single device
    lease     runs of slots that stay what they are for as long as the lease lives

    block r   [ prompt A | A writes .... | prompt B | B writes .. | free ................ ]
                lease of sequence A        lease of sequence B      a branch is a lease on what its worker wrote

Every step takes the buffer and gives it back written (`Pool.heads` is the newest).  Steps and bookkeeping go through
`Pool.lock`, so the order of steps is one.  Leases may be dropped in any thread, also by the garbage collector inside the
lock: their numbers are put on a queue, and their slots are free when the next reservation drains it (`kv/processes.py` has
what several processes do instead).

Who holds a page, and until when; it is free when nobody does:

    a sequence's own lease   what it may write          its end (`release`), or the last reference to it
    its shared lease         a beginning that it reads  the same
    the branches it reads    `TokenSequence` keeps      the same
    a kept branch            what a worker wrote        the last reference to the branch
    a copy of a branch       that lies elsewhere        the last reference to what was copied
    a node of the prefix     what was run before        eviction: a reservation that finds no room evicts
     tree                                               what nobody else holds, before the pool grows

Holders count pages, and write slots: a page that is partly filled may be read by others up to what
they share, and written behind that by the one that began it.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from psynth_jax.axes import Array
from psynth_jax.errors import MemoryLimitError
from psynth_jax.kv.allocator import Allocator, Run, merged, part_of_runs, total_slots
from psynth_jax.kv.prefix_tree import PrefixTree
from psynth_jax.kv.processes import OneThread, said_by_first
from psynth_jax.ops.cached_heads import CachedHeads


class Lease:
    """Slots of a pool that nobody else writes to.  Dropping the last reference lets them go."""

    def __init__(self, pool: Pool, runs: Sequence[Run]):
        """Take over one count of the pages of `runs`; use `Pool.reserve` and `Lease.part`."""
        self.pool = pool
        self.runs = tuple(runs)
        self.generation = pool.generation
        # A finaliser may run at any moment, with or without the lock: it only appends.
        self._finalizer = weakref.finalize(self, pool.dropped.append, pool.numbered(self.runs))

    def __repr__(self) -> str:
        """Show how many slots it has."""
        return f"Lease({self.slots} slots in {len(self.runs)} runs)"

    @property
    def slots(self) -> int:
        """How many slots it has."""
        return total_slots(self.runs)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, key/value heads, and width of a head."""
        heads = self.pool.heads
        return heads.layers, heads.kv_heads // heads.copies, heads.width

    @property
    def lost(self) -> bool:
        """Whether the keys and values are gone, because a step failed that had the buffer."""
        return self.generation != self.pool.generation

    def check(self) -> None:
        """Raise `MemoryLimitError` if the keys and values are gone."""
        if self.lost:
            raise MemoryLimitError(
                "the keys and values of these branches are lost: a step failed that had been given their pool; "
                "encode their texts again"
            )

    def part(self, first: int, length: int) -> Lease:
        """Return a lease on `length` of these slots, from slot number `first` on.  It outlives this one.

        Raises as `check` does.
        """
        runs = part_of_runs(self.runs, first, length)
        with self.pool.lock:
            # In a pool that began again these pages are somebody else's.
            self.check()
            self.pool.allocator.hold(runs)
            return Lease(self.pool, runs)

    def release(self) -> None:
        """Let the slots go before the last reference is dropped; the lease must not be read any more.

        They are free when the next reservation looks for some.
        """
        self._finalizer()


class Pool:
    """Keys and values of all sequences and branches of one model, in one number format.

    allocate: makes the heads `[L, R, K, S, H]` of a number of slots S.  page: slots of a page.  most_slots: S may grow up
    to that.
    """

    def __init__(self, allocate: Callable[[int], CachedHeads], slots: int, page: int, most_slots: int | None = None):
        """Allocate `slots` slots a block, all of them free."""
        self.lock = threading.RLock()
        self.dropped: collections.deque[int] = collections.deque()
        self.generation = 0
        self.heads = allocate(slots)
        self._leased: dict[int, tuple[Run, ...]] = {}
        self._numbers = itertools.count()
        self._one_thread = OneThread()
        self.allocator = Allocator(self.heads.rows, slots, page)
        self.prefixes = PrefixTree(self.allocator)
        self._allocate = allocate
        self._most_slots = max(slots, most_slots or slots)

    def __repr__(self) -> str:
        """Show its size, and how much of it is in use."""
        return f"Pool({self.used_slots} of {self.allocator.blocks * self.allocator.slots} slots in use)"

    @property
    def used_slots(self) -> int:
        """Slots of all blocks that a sequence or a branch holds, in whole pages."""
        with self.lock:
            self._free_dropped()
            return self.allocator.owned_slots() - self.prefixes.slots_of_its_own()

    @property
    def prefix_slots(self) -> int:
        """Slots of all blocks that are kept for sharing alone, in whole pages."""
        with self.lock:
            self._free_dropped()
            return self.prefixes.slots_of_its_own()

    def reserve(self, slots: int, block: int = 0) -> Lease:
        """Return a lease on at least `slots` free slots of a block, which hold anything.

        What is kept for sharing alone makes room; then the pool doubles, between two steps, where
        it may and has to.  Raises `MemoryLimitError` saying how many slots are needed, how many are
        free, and how many a block has.
        """
        with self.lock:
            runs = self._reserved(slots, block)
            if runs is None:
                self.prefixes.evict(slots, block)
                runs = self._reserved(slots, block)
            if runs is None and self._grown_for(slots, block):
                runs = self.allocator.reserve(slots, block)
            if runs is None:
                raise MemoryLimitError(
                    f"{slots} slots of the key/value cache are needed and {self.allocator.free_slots(block)} of "
                    f"{self.allocator.slots} are free; branches that are kept hold slots until they are dropped"
                )
            return Lease(self, runs)

    def hold(self, runs: Iterable[Run]) -> Lease:
        """Return one more lease on slots that have an owner.  The lock is held."""
        held = merged(runs)
        self.allocator.hold(held)
        return Lease(self, held)

    def shapes(self) -> CachedHeads:
        """Return the pool with `jax.ShapeDtypeStruct`s for its arrays, to compile for."""

        def shape(x: Array) -> jax.ShapeDtypeStruct:
            # An array that nobody put on a device goes where the weights are.
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if x.committed else None)

        return jax.tree.map(shape, self.heads)

    def replace(self, heads: CachedHeads) -> None:
        """Take the buffer that a step has written.  The caller has held the lock since it read `heads`."""
        self.heads = heads

    def lose(self) -> None:
        """Start again with an empty buffer: a step failed that had been given the old one.  All leases are lost."""
        with self.lock:
            self.generation += 1
            self._leased.clear()
            slots = self.allocator.slots
            self.allocator = Allocator(self.heads.rows, slots, self.allocator.page)
            self.prefixes = PrefixTree(self.allocator)
            self.heads = self._allocate(slots)  # last: as long as they are deleted, this is done again

    def numbered(self, runs: tuple[Run, ...]) -> int:
        """Return the number of a new lease: never used again, and the same in all processes.  The lock is held."""
        number = next(self._numbers)
        self._leased[number] = runs
        return number

    @property
    def over_processes(self) -> bool:
        """Whether it lies on devices of several processes, which must all do the same."""
        return not self.heads.k.is_fully_addressable

    def _drained(self) -> list[int]:
        """Take the numbers of leases that were dropped."""
        found = []
        while self.dropped:
            found.append(self.dropped.popleft())
        return found

    def _free(self, numbers: Sequence[int]) -> None:
        """Free the slots of some leases.  Of lost ones, and of those that were freed before, none are left."""
        for number in numbers:
            runs = self._leased.pop(number, None)
            if runs is not None:
                self.allocator.release(runs)

    def _free_dropped(self) -> None:
        """Free the slots of leases that were dropped; several processes do so when they need room."""
        if not self.over_processes:
            self._free(self._drained())

    def _reserved(self, slots: int, block: int) -> tuple[Run, ...] | None:
        """Reserve free slots of a block, if there are enough."""
        if self.over_processes:
            return self._reserve_in_all(slots, block)
        self._free_dropped()
        return self.allocator.reserve(slots, block)

    def _reserve_in_all(self, slots: int, block: int) -> tuple[Run, ...] | None:
        """Reserve slots of a block; where that is not one run, free what the first process has dropped, and try again."""
        self._one_thread.check()
        runs = self.allocator.reserve(slots, block)
        if runs is not None and len(runs) == 1:
            return runs
        if runs is not None:
            self.allocator.release(runs)
        sharding = self.heads.k.sharding
        assert isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh)
        self._free(said_by_first(sharding.mesh, self._drained()))
        return self.allocator.reserve(slots, block)

    def _grown_for(self, slots: int, block: int) -> bool:
        """Double the slots of every block until `slots` of them are free in one; say whether that was allowed."""
        wanted, now = self.allocator.slots, self.allocator.slots
        while wanted - now + self.allocator.free_slots(block) < slots:
            wanted *= 2
        if wanted > self._most_slots:
            return False
        self.heads = _grown(self.heads, wanted)
        self.allocator.grow(wanted)
        return True


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Where the new tokens of a step go: block `[B]`, slots `[B, T]`, int32.

    A slot at or beyond S is nowhere: what belongs there is dropped.  No slot of a block is given twice.
    """

    block: Array
    slots: Array


def write_tokens(heads: CachedHeads, k: Array, v: Array, places: Places) -> CachedHeads:
    """Put new keys and values `[L, B, T, K, H]` where they belong; the heads are to be donated.

    XLA writes a scatter in place when every axis is indexed and the indices are unique; one over a flattened pool, or one
    with slices, copies the pool.
    """
    new = heads.stored(jnp.swapaxes(k, 2, 3), jnp.swapaxes(v, 2, 3))  # L B K T H
    layer = jnp.arange(heads.layers)[:, None, None, None]
    block = places.block[:, None, None]  # B 1 1
    head = jnp.arange(heads.kv_heads)[:, None]  # K 1
    slot = places.slots[:, None, :]  # B 1 T

    def put(path: Any, pool: Array, values: Array) -> Array:
        if path[-1].name.endswith("_scale"):  # L R K 1 S
            at: tuple[Any, ...] = (layer, block, head, 0, slot)
            values = values[:, :, :, 0]
        else:
            at = (layer, block, head, slot)
        return pool.at[at].set(values, mode="drop", unique_indices=True)

    return jax.tree_util.tree_map_with_path(put, heads, new)


def _grown(heads: CachedHeads, slots: int) -> CachedHeads:
    """Return a copy with `slots` slots a block."""

    def pad(path: Any, pool: Array) -> Array:
        axis = 4 if path[-1].name.endswith("_scale") else 3
        widths = [(0, 0)] * pool.ndim
        widths[axis] = (0, slots - pool.shape[axis])
        return jnp.pad(pool, widths)

    return jax.tree_util.tree_map_with_path(pad, heads)
